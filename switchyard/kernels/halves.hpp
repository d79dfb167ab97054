#pragma once
// fp32 weights in two halves of 16 bits: the upper one is the weight rounded to bf16 (ties away from zero) and computes as it is, the
// lower one holds the lower bits. Together they are the weight to the bit, in 4 bytes where a weight and a copy take 6:
//
//   bits = (upper << 16) + lower
//
// where lower is a number with a sign: negative exactly where the upper half was rounded up.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// upper, lower = whole. Without autograd.
/// @param whole         fp32, finite, without gaps
/// @param upper, lower  bf16 and int16 of the same shape, without gaps
/// @throws ShapeError
void split_halves(const at::Tensor& whole, const at::Tensor& upper, const at::Tensor& lower);
void split_halves_reference(const at::Tensor& whole, const at::Tensor& upper, const at::Tensor& lower);

/// The fp32 tensor that was split.
[[nodiscard]] at::Tensor joined_halves(const at::Tensor& upper, const at::Tensor& lower);
[[nodiscard]] at::Tensor joined_halves_reference(const at::Tensor& upper, const at::Tensor& lower);

}  // namespace switchyard
