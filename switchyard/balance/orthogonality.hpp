#pragma once
// Balancing losses of a token alone. T tokens, K experts of a token, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// Sum over ordered pairs j != l of a token's experts of the squared length of the projection of output j on output l,
/// <o_j, o_l>^2 / (|o_l|^2 + 1e-6) (the orthogonality loss of arXiv 2505.22323). Differentiable; fp32 or wider.
/// @return [T], 0 where the outputs are orthogonal
/// @throws ShapeError unless outputs_TKD is a floating tensor of 3 dimensions
[[nodiscard]] at::Tensor orthogonality_loss(const at::Tensor& outputs_TKD);

}  // namespace switchyard
