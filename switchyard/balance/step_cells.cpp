#include "switchyard/balance/step_cells.hpp"

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

CellPtr make_cell(int64_t step, int64_t forward, int64_t layer) {
  return c10::make_intrusive<CoefficientCell>(join_text("step ", step, ", forward ", forward, ", layer ", layer));
}

}  // namespace

StepCells::StepCells(const StepPlan& plan, const BalanceShape& shape, std::vector<double> factor_of_segment,
                     const TokenLossWeights& weights)
    : plan_(plan), shape_(shape), factor_of_segment_(std::move(factor_of_segment)), weights_(weights) {
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
      cells_.push_back(make_cell(plan_.step, forward, layer));
      load_cells_.push_back(make_cell(plan_.step, forward, layer));
    }
    z_cells_.push_back(token_cell(forward, weights_.z));
    output_cells_.push_back(token_cell(forward, weights_.orthogonality));
    curvature_cells_.push_back(make_cell(plan_.step, forward, 0));
  }
}

// The same weight for every token, known from the start.
CellPtr StepCells::token_cell(int64_t forward, double weight) const {
  const SegmentRange range = segments(forward);
  at::Tensor weight_S1 = at::zeros({range.end - range.begin, 1}, at::kDouble);
  for (int64_t segment = range.begin; segment < range.end; ++segment) {
    weight_S1.mutable_data_ptr<double>()[segment - range.begin] = weight * factor_of_segment_[static_cast<size_t>(segment)];
  }
  CellPtr cell = make_cell(plan_.step, forward, 0);
  cell->fill(weight_S1);
  return cell;
}

SegmentRange StepCells::segments(int64_t forward) const {
  return {plan_.forward_begin[static_cast<size_t>(forward)], plan_.forward_begin[static_cast<size_t>(forward) + 1]};
}

void StepCells::use(const std::vector<std::unique_ptr<TermBalance>>& terms) {
  for (const auto& term : terms) {
    if (!term->injects()) continue;
    (term->method().score == Score::Load ? on_load_ : on_probs_) = true;
    has_curvature_ = has_curvature_ || term->method().curvature != 0.0;
  }
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    const SegmentRange range = segments(forward);
    at::Tensor curvature_S1 = at::zeros({range.end - range.begin, 1}, at::kDouble);
    for (int64_t segment = range.begin; segment < range.end; ++segment) {
      double sum = 0.0;
      for (const auto& term : terms) sum += term->curvature(segment);
      curvature_S1.mutable_data_ptr<double>()[segment - range.begin] = sum * factor_of_segment_[static_cast<size_t>(segment)];
    }
    curvature_cells_[static_cast<size_t>(forward)]->fill(curvature_S1);
  }
}

void StepCells::fill_forward(int64_t forward, const std::vector<std::unique_ptr<TermBalance>>& terms) {
  const SegmentRange range = segments(forward);
  const auto num_experts = static_cast<size_t>(shape_.num_experts);
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    at::Tensor probs_SE = at::zeros({range.end - range.begin, shape_.num_experts}, at::kDouble);
    at::Tensor load_SE = at::zeros(on_load_ ? probs_SE.sizes() : c10::IntArrayRef({0, shape_.num_experts}), at::kDouble);
    for (const auto& term : terms) {
      if (!term->injects()) continue;
      at::Tensor& rows_SE = term->method().score == Score::Load ? load_SE : probs_SE;
      for (int64_t segment = range.begin; segment < range.end; ++segment) {
        double* row = rows_SE.mutable_data_ptr<double>() + (segment - range.begin) * shape_.num_experts;
        term->add_coefficients(layer, segment, factor_of_segment_[static_cast<size_t>(segment)], {row, num_experts});
      }
    }
    cells_[key(forward, layer)]->fill(probs_SE);
    if (on_load_) load_cells_[key(forward, layer)]->fill(load_SE);
  }
}

void StepCells::fill_known(const std::vector<std::unique_ptr<TermBalance>>& terms) {
  for (int64_t forward = 0; forward < plan_.num_forwards(); ++forward) {
    if (cells_[key(forward, 0)]->filled()) continue;
    const SegmentRange range = segments(forward);
    const bool known = std::all_of(terms.begin(), terms.end(), [&](const auto& term) { return term->known(range); });
    if (known) fill_forward(forward, terms);
  }
}

void StepCells::fill_with_zeros(int64_t forward) {
  if (!cells_[key(forward, 0)]->filled()) fill_forward(forward, {});
}

at::Tensor StepCells::through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                     const at::Tensor& segment_T) const {
  at::Tensor through_TE = logits_TE;
  if (weights_.z != 0.0) through_TE = inject_z_loss(through_TE, segment_T, z_cells_[static_cast<size_t>(forward)]);
  if (on_load_) through_TE = inject_load(through_TE, segment_T, load_cells_[key(forward, layer)], shape_.num_chosen);
  return through_TE;
}

at::Tensor StepCells::through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE,
                                    const at::Tensor& segment_T) const {
  if (!on_probs_) return probs_TE;
  at::Tensor through_TE = inject_coefficients(probs_TE, segment_T, cells_[key(forward, layer)]);
  if (has_curvature_) through_TE = inject_curvature(through_TE, segment_T, curvature_cells_[static_cast<size_t>(forward)]);
  return through_TE;
}

at::Tensor StepCells::through_outputs(int64_t forward, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                      const at::Tensor& segment_T) const {
  return inject_token_loss(out_TD, loss_T, segment_T, output_cells_[static_cast<size_t>(forward)]);
}

at::Tensor StepCells::coefficients_SE(int64_t forward, int64_t layer) const {
  return cells_[key(forward, layer)]->coefficients_SE();
}

}  // namespace switchyard
