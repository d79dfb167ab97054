#pragma once
// The coefficient cells of one step: where each term's coefficients of each forward and layer come together, and the identities
// that hand them to backward. S segments of a forward, F forwards, L MoE layers, E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "switchyard/balance/inject.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/balance/step_plan.hpp"
#include "switchyard/balance/term_balance.hpp"

namespace switchyard {

/// Weights of one token's loss in one layer; 0: none.
struct TokenLossWeights {
  double z = 0.0;
  double orthogonality = 0.0;
};

class StepCells {
 public:
  /// @param factor_of_segment  of the gradient contract, for this rank's segments
  /// @param weights            of losses that need no statistics
  StepCells(const StepPlan& plan, const BalanceShape& shape, std::vector<double> factor_of_segment,
            const TokenLossWeights& weights);

  /// Says which cells the terms fill, and fills what is known from the start.
  void use(const std::vector<std::unique_ptr<TermBalance>>& terms);

  /// Fills the cells of forwards whose segments' coefficients are known to every term.
  void fill_known(const std::vector<std::unique_ptr<TermBalance>>& terms);
  /// Fills the cells of a forward with zeros, so that a step that is about to fail reaches the place where all ranks say so.
  void fill_with_zeros(int64_t forward);

  [[nodiscard]] bool on_probs() const { return on_probs_; }
  [[nodiscard]] bool on_logits() const { return on_load_ || weights_.z != 0.0; }
  [[nodiscard]] at::Tensor through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                          const at::Tensor& segment_T) const;
  [[nodiscard]] at::Tensor through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE,
                                         const at::Tensor& segment_T) const;

  [[nodiscard]] at::Tensor through_outputs(int64_t forward, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                           const at::Tensor& segment_T) const;

  [[nodiscard]] at::Tensor coefficients_SE(int64_t forward, int64_t layer) const;

 private:
  [[nodiscard]] size_t key(int64_t forward, int64_t layer) const {
    return static_cast<size_t>(forward * shape_.num_layers + layer);
  }
  [[nodiscard]] SegmentRange segments(int64_t forward) const;
  [[nodiscard]] CellPtr token_cell(int64_t forward, double weight) const;
  void fill_forward(int64_t forward, const std::vector<std::unique_ptr<TermBalance>>& terms);

  StepPlan plan_;
  BalanceShape shape_;
  std::vector<double> factor_of_segment_;
  TokenLossWeights weights_;
  bool on_probs_ = false;
  bool on_load_ = false;
  bool has_curvature_ = false;
  std::vector<CellPtr> cells_;            // [F * L] of [S, E], on probabilities
  std::vector<CellPtr> load_cells_;       // [F * L] of [S, E], on smooth_load() of the logits
  std::vector<CellPtr> curvature_cells_;  // [F] of [S, 1]
  std::vector<CellPtr> z_cells_;          // [F] of [S, 1]
  std::vector<CellPtr> output_cells_;     // [F] of [S, 1]
};

}  // namespace switchyard
