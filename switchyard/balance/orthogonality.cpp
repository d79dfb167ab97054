#include "switchyard/balance/orthogonality.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/diagonal.h>
#include <ATen/ops/fill_diagonal.h>
#include <ATen/ops/ones.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

at::Tensor orthogonality_loss(const at::Tensor& outputs_TKD) {
  constexpr double kEpsilon = 1e-6;
  SWITCHYARD_CHECK(outputs_TKD.defined() && outputs_TKD.dim() == 3 && outputs_TKD.is_floating_point(), ShapeError,
                   "orthogonality_loss: expected floating-point outputs [tokens, experts of a token, width]");
  const at::Tensor wide_TKD = outputs_TKD.to(outputs_TKD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor products_TKK = at::bmm(wide_TKD, wide_TKD.transpose(1, 2));
  const at::Tensor squares_TK = at::diagonal(products_TKK, 0, 1, 2);
  // Left out before the sum: their squares are so much larger that taking them away afterwards would leave rounding errors.
  const at::Tensor others_KK = at::ones({outputs_TKD.size(1), outputs_TKD.size(1)}, wide_TKD.options()).fill_diagonal_(0.0);
  return products_TKK.mul(others_KK).square().div(squares_TK.unsqueeze(1).add(kEpsilon)).sum({1, 2});
}

}  // namespace switchyard
