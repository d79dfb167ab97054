#include "switchyard/kernels/rms_norm.hpp"

#include <ATen/ops/mean.h>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D) {
  SWITCHYARD_CHECK(x_TD.dim() >= 1 && weight_D.dim() == 1 && x_TD.size(-1) == weight_D.size(0), ShapeError,
                   "rms_norm: x has shape ", x_TD.sizes(), ", weight ", weight_D.sizes(),
                   "; expected a weight for each column of x");
  SWITCHYARD_CHECK(weight_D.scalar_type() == wide_type(x_TD.scalar_type()), ShapeError, "rms_norm: weight is ",
                   weight_D.scalar_type(), " for x of ", x_TD.scalar_type(), "; expected ",
                   wide_type(x_TD.scalar_type()));
}

}  // namespace

at::Tensor rms_norm_reference(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon) {
  check_rms_norm(x_TD, weight_D);
  const at::Tensor wide_TD = x_TD.to(weight_D.scalar_type());
  const at::Tensor inverse_T1 = at::mean(wide_TD.square(), {-1}, true).add(epsilon).rsqrt();
  return wide_TD.mul(inverse_T1).mul(weight_D).to(x_TD.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon) {
  return rms_norm_reference(x_TD, weight_D, epsilon);
}

}  // namespace switchyard
