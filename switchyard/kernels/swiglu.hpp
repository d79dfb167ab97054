#pragma once
// SwiGLU (arXiv 2002.05202, equation 6): silu(gate) * up. A rows, F width.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// @param gate_up_AF  [A, 2F]: gate in columns [0, F), up in [F, 2F)
/// @return [A, F] in the type of the input, computed in fp32 (double for double)
/// @throws ShapeError
[[nodiscard]] at::Tensor swiglu(const at::Tensor& gate_up_AF);
[[nodiscard]] at::Tensor swiglu_reference(const at::Tensor& gate_up_AF);
/// The value without autograd, for use inside other kernels.
[[nodiscard]] at::Tensor swiglu_forward(const at::Tensor& gate_up_AF);

/// Gradients of h = silu(gate) * up where the row is weighted afterwards, y = weight * (h W): what both the dense and the
/// expert feed-forward need.
struct SwigluGradient {
  at::Tensor gate_up_AF;  // [A, 2F], d loss / d gate_up_AF
  at::Tensor weighted;    // [A, F], weight * h
  at::Tensor weight_A;    // [A], d loss / d weight = sum of h * d_hidden
};

/// @param d_hidden  [A, F], d loss / d (weight * h)
/// @param weight_A  fp32 (double for double); undefined: ones, and `weighted` is h, `weight_A` stays undefined
[[nodiscard]] SwigluGradient swiglu_backward(const at::Tensor& gate_up_AF, const at::Tensor& d_hidden,
                                             const at::Tensor& weight_A);
[[nodiscard]] SwigluGradient swiglu_backward_reference(const at::Tensor& gate_up_AF, const at::Tensor& d_hidden,
                                                       const at::Tensor& weight_A);

}  // namespace switchyard
