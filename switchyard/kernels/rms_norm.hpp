#pragma once
// RMSNorm (arXiv 1910.07467, equation 4): y = x / sqrt(mean(x^2) + epsilon) * weight. T rows, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// Computed in fp32 (double for double input), returned in the type of x_TD. Differentiable in both tensors.
/// @param x_TD      bf16, fp32 or double, [..., D]
/// @param weight_D  fp32 for bf16 and fp32 input, double for double
/// @throws ShapeError
[[nodiscard]] at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon);

/// The same from plain ATen operations: what the tests compare with, and what runs on other devices.
[[nodiscard]] at::Tensor rms_norm_reference(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon);

}  // namespace switchyard
