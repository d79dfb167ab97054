#include "switchyard/balance/inject.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/balance/statistics.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/kernels/first_derivative.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The other losses are linear in what they pass on: what they add to a gradient is constant, and so right in a second one.
constexpr const char* kInstead = "leave the loss out where second derivatives are wanted";
constexpr const char* kCellKey = "cell";
constexpr const char* kChosenKey = "num_chosen";
constexpr const char* kTypeKey = "type";

CellPtr cell_of(AutogradContext* context) {
  return c10::static_intrusive_pointer_cast<CoefficientCell>(context->saved_data[kCellKey].toCapsule());
}

// Adds the loss's gradient to that of an identity.
struct InjectCoefficients : torch::autograd::Function<InjectCoefficients> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& probs_TE, const at::Tensor& segment_T,
                            const CellPtr& cell) {
    context->saved_data[kCellKey] = c10::IValue::make_capsule(cell);
    context->save_for_backward({segment_T});
    return probs_TE;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor segment_T = context->get_saved_variables()[0];
    const at::Tensor& grad_TE = grads[0];
    return {grad_TE.add(cell_of(context)->of_tokens(segment_T, grad_TE.scalar_type())), at::Tensor(), at::Tensor()};
  }
};

struct InjectCurvature : torch::autograd::Function<InjectCurvature> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& probs_TE, const at::Tensor& segment_T,
                            const CellPtr& cell) {
    context->saved_data[kCellKey] = c10::IValue::make_capsule(cell);
    context->save_for_backward({segment_T, probs_TE});
    return probs_TE;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    refuse_second_derivative("balancing loss (its part of a token's own probabilities)", kInstead);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor probs_TE = saved[1].detach();
    const at::Tensor scale_T1 = cell_of(context)->of_tokens(saved[0], probs_TE.scalar_type());
    const at::Tensor added_TE = at::where(scale_T1.eq(0), 0.0, probs_TE.mul(scale_T1));
    return {grads[0].add(added_TE.to(grads[0].scalar_type())), at::Tensor(), at::Tensor()};
  }
};

struct InjectLoad : torch::autograd::Function<InjectLoad> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& logits_TE, const at::Tensor& segment_T,
                            const CellPtr& cell, int64_t num_chosen) {
    context->saved_data[kCellKey] = c10::IValue::make_capsule(cell);
    context->saved_data[kChosenKey] = num_chosen;
    context->save_for_backward({segment_T, logits_TE});
    return logits_TE;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    refuse_second_derivative("balancing loss of the load", kInstead);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor scale_TE = cell_of(context)->of_tokens(saved[0], saved[1].scalar_type());
    const at::AutoGradMode enabled(true);
    // Padding rows may hold anything; their rows of scale are zero, which does not help against infinities.
    const at::Tensor logits_TE = saved[1].detach().masked_fill(saved[0].lt(0).unsqueeze(1), 0.0).set_requires_grad(true);
    const at::Tensor load_TE = smooth_load(logits_TE, context->saved_data[kChosenKey].toInt());
    const variable_list added = torch::autograd::grad({load_TE}, {logits_TE}, {scale_TE});
    return {grads[0].add(added[0].to(grads[0].scalar_type())), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct InjectTokenLoss : torch::autograd::Function<InjectTokenLoss> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& through_TX, const at::Tensor& loss_T,
                            const at::Tensor& segment_T, const CellPtr& cell) {
    context->saved_data[kCellKey] = c10::IValue::make_capsule(cell);
    context->saved_data[kTypeKey] = loss_T.scalar_type();
    context->save_for_backward({segment_T});
    return through_TX;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor segment_T = context->get_saved_variables()[0];
    const at::Tensor scale_T1 = cell_of(context)->of_tokens(segment_T, context->saved_data[kTypeKey].toScalarType());
    return {grads[0], scale_T1.squeeze(1), at::Tensor(), at::Tensor()};
  }
};

struct InjectZLoss : torch::autograd::Function<InjectZLoss> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& logits_TE, const at::Tensor& segment_T,
                            const CellPtr& cell) {
    context->saved_data[kCellKey] = c10::IValue::make_capsule(cell);
    context->save_for_backward({segment_T, logits_TE});
    return logits_TE;
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    refuse_second_derivative("z-loss", kInstead);
    const variable_list saved = context->get_saved_variables();
    const at::Tensor logits_TE = saved[1].detach();
    const at::Tensor scale_T1 = cell_of(context)->of_tokens(saved[0], logits_TE.scalar_type());
    const at::Tensor lse_T1 = at::logsumexp(logits_TE, {-1}, /*keepdim=*/true);
    // A padding row may hold anything, infinities included; zero times that would still be NaN.
    const at::Tensor z_grad_TE = at::where(scale_T1.eq(0), 0.0, at::softmax(logits_TE, -1).mul(scale_T1.mul(lse_T1).mul(2.0)));
    return {grads[0].add(z_grad_TE.to(grads[0].scalar_type())), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

void CoefficientCell::fill(const at::Tensor& coefficients_SE) {
  rows_ = at::cat({coefficients_SE, at::zeros({1, coefficients_SE.size(1)}, coefficients_SE.options())});
}

at::Tensor CoefficientCell::coefficients_SE() const {
  SWITCHYARD_CHECK(filled(), StateError, where_,
                   ": the balancing coefficients are not known yet. Call close_forward() after its last ",
                   "layer and, for scopes that need the whole step, close_counting() after the last forward, before backward");
  return rows_.narrow(0, 0, rows_.size(0) - 1);
}

at::Tensor CoefficientCell::of_tokens(const at::Tensor& segment_T, at::ScalarType type) const {
  const int64_t num_segments = coefficients_SE().size(0);
  reached_ = true;
  return rows_.to(segment_T.device(), type).index_select(0, at::where(segment_T.lt(0), num_segments, segment_T));
}

at::Tensor CoefficientCell::expect_backward(const at::Tensor& through) {
  expected_ = expected_ || through.requires_grad();
  return through;
}

at::Tensor inject_coefficients(const at::Tensor& probs_TE, const at::Tensor& segment_T, const CellPtr& cell) {
  return cell->expect_backward(InjectCoefficients::apply(probs_TE, segment_T, cell));
}

at::Tensor inject_curvature(const at::Tensor& probs_TE, const at::Tensor& segment_T, const CellPtr& cell) {
  return cell->expect_backward(InjectCurvature::apply(probs_TE, segment_T, cell));
}

at::Tensor inject_token_loss(const at::Tensor& through_TX, const at::Tensor& loss_T, const at::Tensor& segment_T,
                             const CellPtr& cell) {
  return cell->expect_backward(InjectTokenLoss::apply(through_TX, loss_T, segment_T, cell));
}

at::Tensor inject_load(const at::Tensor& logits_TE, const at::Tensor& segment_T, const CellPtr& cell, int64_t num_chosen) {
  return cell->expect_backward(InjectLoad::apply(logits_TE, segment_T, cell, num_chosen));
}

at::Tensor inject_z_loss(const at::Tensor& logits_TE, const at::Tensor& segment_T, const CellPtr& cell) {
  return cell->expect_backward(InjectZLoss::apply(logits_TE, segment_T, cell));
}

}  // namespace switchyard
