#include "switchyard/balance/parameter_loss.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

ParameterLoss simbal_loss(const at::Tensor& weight_ED) {
  SWITCHYARD_CHECK(weight_ED.defined() && weight_ED.dim() == 2 && weight_ED.is_floating_point(), ShapeError,
                   "simbal_loss: expected a floating-point matrix [experts, width]");
  const at::NoGradGuard no_grad;
  const at::Tensor gram_EE = at::mm(weight_ED, weight_ED.t());
  const at::Tensor distance_EE = gram_EE.sub(at::eye(weight_ED.size(0), weight_ED.options()));
  return {distance_EE.abs().sum(at::kDouble).item<double>(), at::mm(distance_EE.sign(), weight_ED).mul(2.0)};
}

}  // namespace switchyard
