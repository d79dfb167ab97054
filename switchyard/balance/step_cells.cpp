#include "switchyard/balance/step_cells.hpp"

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

bool same_segments(const at::Tensor& one_T, const at::Tensor& other_T) {
  if (one_T.is_same(other_T)) return true;
  return other_T.defined() && other_T.scalar_type() == at::kLong && at::equal(one_T.to(other_T.device()), other_T);
}

}  // namespace

StepCells::StepCells(const StepPlan& plan, const BalanceShape& shape, std::vector<double> factor_of_segment,
                     const TokenLossWeights& weights)
    : plan_(plan), shape_(shape), factor_of_segment_(std::move(factor_of_segment)), weights_(weights),
      logits_passed_(static_cast<size_t>(plan.num_forwards() * shape.num_layers)), probs_passed_(logits_passed_),
      checked_segments_F_(static_cast<size_t>(plan.num_forwards())) {
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
      cells_.push_back(c10::make_intrusive<CoefficientCell>(plan_.place(forward, layer)));
      load_cells_.push_back(c10::make_intrusive<CoefficientCell>(plan_.place(forward, layer)));
    }
    add_cells_of_tokens(forward, weights_.z, z_cells_);
    add_cells_of_tokens(forward, weights_.orthogonality, output_cells_);
    curvature_cells_.push_back(c10::make_intrusive<CoefficientCell>(plan_.place(forward, 0)));
  }
}

// The same weight for every token, known from the start. A cell for each layer, so that each can tell whether it acted.
void StepCells::add_cells_of_tokens(int64_t forward, double weight, std::vector<CellPtr>& cells) const {
  if (weight == 0.0) return;
  const SegmentRange range = plan_.segments(forward);
  at::Tensor weight_S1 = at::zeros({range.size(), 1}, at::kDouble);
  for (int64_t segment = range.begin; segment < range.end; ++segment) {
    weight_S1.mutable_data_ptr<double>()[segment - range.begin] = weight * factor_of_segment_[static_cast<size_t>(segment)];
  }
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    cells.push_back(c10::make_intrusive<CoefficientCell>(plan_.place(forward, layer)));
    cells.back()->fill(weight_S1);
  }
}

void StepCells::use(const std::vector<std::unique_ptr<TermBalance>>& terms) {
  for (const auto& term : terms) {
    if (!term->injects()) continue;
    (term->method().score == Score::Load ? on_load_ : on_probs_) = true;
    has_curvature_ = has_curvature_ || term->method().curvature != 0.0;
  }
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    const SegmentRange range = plan_.segments(forward);
    at::Tensor curvature_S1 = at::zeros({range.size(), 1}, at::kDouble);
    for (int64_t segment = range.begin; segment < range.end; ++segment) {
      double sum = 0.0;
      for (const auto& term : terms) sum += term->curvature(segment);
      curvature_S1.mutable_data_ptr<double>()[segment - range.begin] = sum * factor_of_segment_[static_cast<size_t>(segment)];
    }
    curvature_cells_[static_cast<size_t>(forward)]->fill(curvature_S1);
  }
}

void StepCells::fill_forward(int64_t forward, const std::vector<std::unique_ptr<TermBalance>>& terms) {
  const SegmentRange range = plan_.segments(forward);
  const auto num_experts = static_cast<size_t>(shape_.num_experts);
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    at::Tensor probs_SE = at::zeros({range.size(), shape_.num_experts}, at::kDouble);
    at::Tensor load_SE = at::zeros(on_load_ ? probs_SE.sizes() : c10::IntArrayRef({0, shape_.num_experts}), at::kDouble);
    for (const auto& term : terms) {
      if (!term->injects()) continue;
      at::Tensor& rows_SE = term->method().score == Score::Load ? load_SE : probs_SE;
      for (int64_t segment = range.begin; segment < range.end; ++segment) {
        double* row = rows_SE.mutable_data_ptr<double>() + (segment - range.begin) * shape_.num_experts;
        term->add_coefficients(layer, segment, factor_of_segment_[static_cast<size_t>(segment)], {row, num_experts});
      }
    }
    cells_[shape_.index(forward, layer)]->fill(probs_SE);
    if (on_load_) load_cells_[shape_.index(forward, layer)]->fill(load_SE);
  }
}

void StepCells::fill_known(const std::vector<std::unique_ptr<TermBalance>>& terms) {
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    if (cells_[shape_.index(forward, 0)]->filled()) continue;
    const SegmentRange range = plan_.segments(forward);
    const bool known = std::all_of(terms.begin(), terms.end(), [&](const auto& term) { return term->known(range); });
    if (known) fill_forward(forward, terms);
  }
}

void StepCells::fill_with_zeros(int64_t forward) {
  if (!cells_[shape_.index(forward, 0)]->filled()) fill_forward(forward, {});
}

void StepCells::check_segments(int64_t forward, int64_t layer, const at::Tensor& scores_TE, const at::Tensor& segment_T) {
  SWITCHYARD_CHECK(scores_TE.defined() && segment_T.defined(), ShapeError, plan_.place(forward, layer),
                   ": scores or segment numbers are an undefined tensor; expected [T, E] and [T]");
  SWITCHYARD_CHECK(segment_T.dim() == 1 && scores_TE.dim() == 2 && segment_T.size(0) == scores_TE.size(0) &&
                       scores_TE.size(1) == shape_.num_experts,
                   ShapeError, plan_.place(forward, layer), ": scores of shape ", scores_TE.sizes(), " with segment numbers of shape ",
                   segment_T.sizes(), "; expected [T, ", shape_.num_experts, "] and [T]");
  SWITCHYARD_CHECK(scores_TE.is_floating_point() && segment_T.scalar_type() == at::kLong, ShapeError, plan_.place(forward, layer),
                   ": scores of type ", scores_TE.scalar_type(), " with segment numbers of type ", segment_T.scalar_type(),
                   "; expected floating point and Long (int64)");
  check_range(forward, layer, segment_T);
}

// Here, and not only where the tokens are counted: in backward this rank would fail alone. A forward has one tensor of them as a rule.
void StepCells::check_range(int64_t forward, int64_t layer, const at::Tensor& segment_T) {
  at::Tensor& checked_T = checked_segments_F_[static_cast<size_t>(forward)];
  if (segment_T.numel() == 0 || (checked_T.defined() && checked_T.is_same(segment_T))) return;
  const int64_t lowest = segment_T.min().item<int64_t>(), highest = segment_T.max().item<int64_t>();
  const int64_t num_segments = plan_.segments(forward).size();
  SWITCHYARD_CHECK(lowest >= -1 && highest < num_segments, ShapeError, plan_.place(forward, layer), ": segment numbers are ", lowest,
                   " to ", highest, "; expected -1 (padding) to ", num_segments - 1, ", segments of the forward");
  checked_T = segment_T;
}

at::Tensor StepCells::through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                     const at::Tensor& segment_T) {
  check_segments(forward, layer, logits_TE, segment_T);
  logits_passed_[shape_.index(forward, layer)] = segment_T;
  at::Tensor through_TE = logits_TE;
  if (weights_.z != 0.0) through_TE = inject_z_loss(through_TE, segment_T, z_cells_[shape_.index(forward, layer)]);
  if (on_load_) through_TE = inject_load(through_TE, segment_T, load_cells_[shape_.index(forward, layer)], shape_.num_chosen);
  return through_TE;
}

at::Tensor StepCells::through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE, const at::Tensor& segment_T) {
  check_segments(forward, layer, probs_TE, segment_T);
  probs_passed_[shape_.index(forward, layer)] = segment_T;
  if (!on_probs_) return probs_TE;
  at::Tensor through_TE = inject_coefficients(probs_TE, segment_T, cells_[shape_.index(forward, layer)]);
  if (has_curvature_) through_TE = inject_curvature(through_TE, segment_T, curvature_cells_[static_cast<size_t>(forward)]);
  return through_TE;
}

at::Tensor StepCells::through_outputs(int64_t forward, int64_t layer, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                      const at::Tensor& segment_T) const {
  if (weights_.orthogonality == 0.0) return out_TD;
  return inject_token_loss(out_TD, loss_T, segment_T, output_cells_[shape_.index(forward, layer)]);
}

void StepCells::check_token_losses(int64_t forward, int64_t layer, const at::Tensor& loss_T, const at::Tensor& segment_T) {
  SWITCHYARD_CHECK(loss_T.defined() && segment_T.defined(), ShapeError, plan_.place(forward, layer),
                   ": orthogonality losses or segment numbers are an undefined tensor; expected one of each per token");
  SWITCHYARD_CHECK(loss_T.dim() == 1 && loss_T.sizes() == segment_T.sizes(), ShapeError, plan_.place(forward, layer),
                   ": orthogonality losses have shape ", loss_T.sizes(), "; expected one per token, ", segment_T.sizes());
  SWITCHYARD_CHECK(loss_T.is_floating_point() && segment_T.scalar_type() == at::kLong, ShapeError, plan_.place(forward, layer),
                   ": orthogonality losses of type ", loss_T.scalar_type(), " with segment numbers of type ", segment_T.scalar_type(),
                   "; expected floating point and Long (int64)");
  check_range(forward, layer, segment_T);
}

void StepCells::check_passed(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T) const {
  const at::Tensor& with_probs_T = probs_passed_[shape_.index(forward, layer)];
  const at::Tensor& with_logits_T = logits_passed_[shape_.index(forward, layer)];
  const bool on_logits = on_load_ || weights_.z != 0.0;
  SWITCHYARD_CHECK(!on_probs_ || (with_probs_T.defined() && routing.probs_TE.defined()), StateError,
                   plan_.place(forward, layer), ": the router did not pass its probabilities through, so a balancing loss "
                   "that is on could not act. Use a router that takes balancing, or set balance.method = \"none\"");
  SWITCHYARD_CHECK(!on_logits || (with_logits_T.defined() && routing.logits_TE.defined()), StateError,
                   plan_.place(forward, layer), ": the router did not pass its logits through, so the z-loss (coefficient ",
                   weights_.z, ") or a loss of the load could not act. Use a router that takes balancing, or set "
                   "balance.z_coefficient = 0");
  const bool probs_fit = !on_probs_ || same_segments(with_probs_T, segment_T);
  const bool logits_fit = !on_logits || same_segments(with_logits_T, segment_T);
  SWITCHYARD_CHECK(probs_fit && logits_fit, ShapeError, plan_.place(forward, layer),
                   ": the router passed its scores through with other segment numbers than its counts are recorded with, so "
                   "their coefficients would go to other tokens. Give both the same segment_T");
}

void StepCells::check_reached() const {
  const auto check = [](const std::vector<CellPtr>& cells, const char* identity) {
    for (const CellPtr& cell : cells) {
      SWITCHYARD_CHECK(!cell->bypassed(), StateError, cell->where(), ": no backward came through what ", identity,
                       " returned, so a balancing loss that is on did not act. Go on with the returned tensor, and call finish() after "
                       "the last backward");
    }
  };
  check(cells_, "through_probs()");
  check(load_cells_, "through_logits()");
  check(z_cells_, "through_logits()");
  check(output_cells_, "through_outputs()");
}

at::Tensor StepCells::coefficients_SE(int64_t forward, int64_t layer) const {
  return cells_[shape_.index(forward, layer)]->coefficients_SE();
}

}  // namespace switchyard
