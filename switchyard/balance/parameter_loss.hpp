#pragma once
// Balancing losses of weights alone: no tokens, no scope, the same on every rank. E experts, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

struct ParameterLoss {
  double value = 0.0;
  at::Tensor gradient_ED;  // type of the weight
};

/// SimBal (arXiv 2506.14038): sum over pairs of experts of |<w_i, w_j> - [i = j]|, w the rows of the router. 0 for orthonormal
/// rows, which need E <= D. Gradient 2 sign(W W^T - I) W.
/// @throws ShapeError unless weight_ED is a floating matrix
[[nodiscard]] ParameterLoss simbal_loss(const at::Tensor& weight_ED);

}  // namespace switchyard
