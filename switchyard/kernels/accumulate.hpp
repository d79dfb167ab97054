#pragma once
// Sums of bf16 tensors in fp32, in one pass over memory: ATen's add_ of mixed types casts to a tensor of its own first.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// sum += values. Without autograd.
/// @param sum     fp32 (double for double values), [..., W]; only the last dimension must be without gaps, so that it may be a
///                part of something larger
/// @param values  bf16, fp32 or double, of the same shape
/// @throws ShapeError
void accumulate(const at::Tensor& sum, const at::Tensor& values);

}  // namespace switchyard
