#pragma once
// RMSNorm (arXiv 1910.07467, equation 4): y = x / sqrt(mean(x^2) + epsilon) * weight. T rows, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// Computed in fp32 (double for double input), returned in the type of x_TD. Differentiable in both tensors,
/// once (first_derivative.hpp).
/// @param x_TD      bf16, fp32 or double, [..., D]
/// @param weight_D  fp32 for bf16 and fp32 input, double for double
/// @throws ShapeError
[[nodiscard]] at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon);

/// The same from plain ATen operations: what the tests compare with, and what runs on other devices.
[[nodiscard]] at::Tensor rms_norm_reference(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon);

struct ResidualNorm {
  at::Tensor hidden_TD;  // the residual stream
  at::Tensor normed_TD;  // rms_norm() of it
};

/// hidden = x + added (rounded to their type), or x where added is undefined; normed = rms_norm(hidden). One pass each way: the
/// two gradients of hidden are added up in fp32 within the norm's backward.
/// @throws ShapeError
[[nodiscard]] ResidualNorm residual_rms_norm(const at::Tensor& x_TD, const at::Tensor& added_TD, const at::Tensor& weight_D,
                                             double epsilon);

}  // namespace switchyard
