#include "switchyard/balance/orthogonality.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/diagonal.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

at::Tensor orthogonality_loss(const at::Tensor& outputs_TKD) {
  constexpr double kEpsilon = 1e-6;
  SWITCHYARD_CHECK(outputs_TKD.defined() && outputs_TKD.dim() == 3 && outputs_TKD.is_floating_point(), ShapeError,
                   "orthogonality_loss: expected floating-point outputs [tokens, experts of a token, width]");
  const at::Tensor wide_TKD = outputs_TKD.to(outputs_TKD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor products_TKK = at::bmm(wide_TKD, wide_TKD.transpose(1, 2));
  const at::Tensor squares_TK = at::diagonal(products_TKK, 0, 1, 2);
  const at::Tensor all_TKK = products_TKK.square().div(squares_TK.unsqueeze(1).add(kEpsilon));
  const at::Tensor own_TK = squares_TK.square().div(squares_TK.add(kEpsilon));
  return all_TKK.sum({1, 2}).sub(own_TK.sum(1));
}

}  // namespace switchyard
