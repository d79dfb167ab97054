#include "switchyard/kernels/rms_norm.hpp"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/row_blocks.hpp"
#include "switchyard/kernels/row_ops.hpp"
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

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x_TD, const at::Tensor& weight_D,
                            double epsilon) {
    const KernelScope profiled("rms_norm");
    const at::Tensor x = x_TD.contiguous();
    const at::Tensor weight = weight_D.contiguous();
    const int64_t width = weight.size(0);
    at::Tensor out_TD = at::empty_like(x);
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "rms_norm", [&] {
      using Wide = WideOf<scalar_t>;
      const RowOps<scalar_t>& ops = row_ops<scalar_t>();
      const scalar_t* in = x.const_data_ptr<scalar_t>();
      scalar_t* out = out_TD.mutable_data_ptr<scalar_t>();
      for_each_row_block(x.numel() / width, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          ops.rms_norm(in + row * width, weight.const_data_ptr<Wide>(), out + row * width, width, static_cast<Wide>(epsilon));
        }
      });
    });
    context->save_for_backward({x, weight});
    context->saved_data["epsilon"] = epsilon;
    return out_TD;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const KernelScope profiled("rms_norm backward");
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor d_out_TD = gradients[0].contiguous();
    const double epsilon = context->saved_data["epsilon"].toDouble();
    const int64_t width = weight.size(0);
    const int64_t num_rows = x.numel() / width;
    at::Tensor d_x = at::empty_like(x);
    at::Tensor partial_GD = at::zeros({num_row_blocks(num_rows), width}, weight.options());
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "rms_norm_backward", [&] {
      using Wide = WideOf<scalar_t>;
      const RowOps<scalar_t>& ops = row_ops<scalar_t>();
      const scalar_t* in = x.const_data_ptr<scalar_t>();
      const scalar_t* d_out = d_out_TD.const_data_ptr<scalar_t>();
      scalar_t* d_in = d_x.mutable_data_ptr<scalar_t>();
      Wide* partial = partial_GD.mutable_data_ptr<Wide>();
      for_each_row_block(num_rows, [&](int64_t block, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t at = row * width;
          ops.rms_norm_backward(in + at, weight.const_data_ptr<Wide>(), d_out + at, d_in + at, partial + block * width,
                                width, static_cast<Wide>(epsilon));
        }
      });
    });
    return {d_x, partial_GD.sum(0), at::Tensor()};
  }
};

}  // namespace

at::Tensor rms_norm_reference(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon) {
  check_rms_norm(x_TD, weight_D);
  const at::Tensor wide_TD = x_TD.to(weight_D.scalar_type());
  const at::Tensor inverse_T1 = at::mean(wide_TD.square(), {-1}, true).add(epsilon).rsqrt();
  return wide_TD.mul(inverse_T1).mul(weight_D).to(x_TD.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon) {
  check_rms_norm(x_TD, weight_D);
  if (!x_TD.is_cpu()) return rms_norm_reference(x_TD, weight_D, epsilon);
  return RmsNormFunction::apply(x_TD, weight_D, epsilon);
}

}  // namespace switchyard
