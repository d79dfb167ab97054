#include "switchyard/kernels/rms_norm.hpp"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/row_blocks.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_rms_norm(const at::Tensor& x_TD, const at::Tensor& weight_D) {
  SWITCHYARD_CHECK(x_TD.dim() >= 1 && weight_D.dim() == 1 && x_TD.size(-1) == weight_D.size(0) && weight_D.size(0) >= 1, ShapeError,
                   "rms_norm: x has shape ", x_TD.sizes(), ", weight ", weight_D.sizes(),
                   "; expected at least one column of x, and a weight for each");
  SWITCHYARD_CHECK(weight_D.scalar_type() == wide_type(x_TD.scalar_type()), ShapeError, "rms_norm: weight is ",
                   weight_D.scalar_type(), " for x of ", x_TD.scalar_type(), "; expected ",
                   wide_type(x_TD.scalar_type()));
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// @param added  undefined, or added to x first; the sum is then kept in hidden, else hidden is x
struct NormedRows {
  at::Tensor hidden;
  at::Tensor normed;
};
NormedRows normed_rows(const at::Tensor& x, const at::Tensor& added, const at::Tensor& weight, double epsilon) {
  const KernelScope profiled("rms_norm");
  const int64_t width = weight.size(0);
  const NormedRows rows{added.defined() ? at::empty_like(x) : x, at::empty_like(x)};
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "rms_norm", [&] {
    using Wide = WideOf<scalar_t>;
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const scalar_t* in = x.const_data_ptr<scalar_t>();
    const scalar_t* addend = added.defined() ? added.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* kept = added.defined() ? rows.hidden.mutable_data_ptr<scalar_t>() : nullptr;
    scalar_t* out = rows.normed.mutable_data_ptr<scalar_t>();
    for_each_row_block(x.numel() / width, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t at = begin * width; at < end * width; at += width) {
        if (kept != nullptr) ops.add(in + at, addend + at, kept + at, width);
        ops.rms_norm((kept != nullptr ? kept : in) + at, weight.const_data_ptr<Wide>(), out + at, width, static_cast<Wide>(epsilon));
      }
    });
  });
  return rows;
}

struct NormGradient {
  at::Tensor hidden;
  at::Tensor weight;
};
/// @param d_kept  what else flows to hidden; may be undefined
NormGradient norm_gradient_of(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& d_normed,
                              const at::Tensor& d_kept, double epsilon) {
  const KernelScope profiled("rms_norm backward");
  const int64_t width = weight.size(0);
  const int64_t num_rows = hidden.numel() / width;
  at::Tensor d_hidden = at::empty_like(hidden);
  at::Tensor partial_GD = at::zeros({num_row_blocks(num_rows), width}, weight.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, hidden.scalar_type(), "rms_norm_backward", [&] {
    using Wide = WideOf<scalar_t>;
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const scalar_t* in = hidden.const_data_ptr<scalar_t>();
    const scalar_t* d_out = d_normed.const_data_ptr<scalar_t>();
    const scalar_t* kept = d_kept.defined() ? d_kept.const_data_ptr<scalar_t>() : nullptr;
    scalar_t* d_in = d_hidden.mutable_data_ptr<scalar_t>();
    Wide* partial = partial_GD.mutable_data_ptr<Wide>();
    for_each_row_block(num_rows, [&](int64_t block, int64_t begin, int64_t end) {
      for (int64_t at = begin * width; at < end * width; at += width) {
        ops.rms_norm_backward(in + at, weight.const_data_ptr<Wide>(), d_out + at, kept == nullptr ? nullptr : kept + at,
                              d_in + at, partial + block * width, width, static_cast<Wide>(epsilon));
      }
    });
  });
  return {d_hidden, partial_GD.sum(0)};
}

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x_TD, const at::Tensor& weight_D, double epsilon) {
    const at::Tensor x = x_TD.contiguous();
    const at::Tensor weight = weight_D.contiguous();
    context->save_for_backward({x, weight});
    context->saved_data["epsilon"] = epsilon;
    return normed_rows(x, at::Tensor(), weight, epsilon).normed;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("rms_norm", "rms_norm_reference()");
    const variable_list saved = context->get_saved_variables();
    const double epsilon = context->saved_data["epsilon"].toDouble();
    const NormGradient gradient = norm_gradient_of(saved[0], saved[1], gradients[0].contiguous(), at::Tensor(), epsilon);
    return {gradient.hidden, gradient.weight, at::Tensor()};
  }
};

struct ResidualNormFunction : torch::autograd::Function<ResidualNormFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& x_TD, const std::optional<at::Tensor>& added_TD,
                               const at::Tensor& weight_D, double epsilon) {
    const at::Tensor weight = weight_D.contiguous();
    const NormedRows rows = normed_rows(x_TD.contiguous(), added_TD ? added_TD->contiguous() : at::Tensor(), weight, epsilon);
    context->save_for_backward({rows.hidden, weight});
    context->saved_data["epsilon"] = epsilon;
    context->saved_data["adds"] = added_TD.has_value();
    context->set_materialize_grads(false);
    return {rows.hidden, rows.normed};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("residual_rms_norm", "rms_norm_reference() of the sum");
    const variable_list saved = context->get_saved_variables();
    const double epsilon = context->saved_data["epsilon"].toDouble();
    const at::Tensor d_kept = gradients[0].defined() ? gradients[0].contiguous() : gradients[0];
    NormGradient gradient{d_kept, at::Tensor()};
    if (gradients[1].defined()) {
      gradient = norm_gradient_of(saved[0], saved[1], gradients[1].contiguous(), d_kept, epsilon);
    }
    const bool adds = context->saved_data["adds"].toBool();
    return {gradient.hidden, adds ? gradient.hidden : at::Tensor(), gradient.weight, at::Tensor()};
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

ResidualNorm residual_rms_norm(const at::Tensor& x_TD, const at::Tensor& added_TD, const at::Tensor& weight_D, double epsilon) {
  check_rms_norm(x_TD, weight_D);
  SWITCHYARD_CHECK(!added_TD.defined() || (added_TD.sizes() == x_TD.sizes() && added_TD.scalar_type() == x_TD.scalar_type()),
                   ShapeError, "residual_rms_norm: ", added_TD.scalar_type(), " ", added_TD.sizes(), " is to be added to ",
                   x_TD.scalar_type(), " ", x_TD.sizes(), "; expected one shape and type");
  if (!x_TD.is_cpu()) {
    const at::Tensor hidden_TD = added_TD.defined() ? x_TD.add(added_TD) : x_TD;
    return {hidden_TD, rms_norm_reference(hidden_TD, weight_D, epsilon)};
  }
  const std::optional<at::Tensor> added = added_TD.defined() ? std::optional(added_TD) : std::nullopt;
  const variable_list outputs = ResidualNormFunction::apply(x_TD, added, weight_D, epsilon);
  return {outputs[0], outputs[1]};
}

}  // namespace switchyard
