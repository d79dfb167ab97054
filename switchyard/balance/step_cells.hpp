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
#include "switchyard/core/routing.hpp"

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

  /// The identities of StepBalance. @throws ShapeError where scores are no floating-point [T, E] or segment_T is not an int64 a token
  [[nodiscard]] at::Tensor through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                          const at::Tensor& segment_T);
  [[nodiscard]] at::Tensor through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE,
                                         const at::Tensor& segment_T);
  [[nodiscard]] at::Tensor through_outputs(int64_t forward, int64_t layer, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                           const at::Tensor& segment_T) const;

  /// @throws ShapeError where loss_T is not a floating-point number, and segment_T not an int64, for each token
  void check_token_losses(int64_t forward, int64_t layer, const at::Tensor& loss_T, const at::Tensor& segment_T);

  /// Before a layer's counts are taken. A loss that is asked for and cannot act is an error, never silence.
  /// @throws StateError where its router did not use the identities; ShapeError where it gave them another segment_T
  void check_passed(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T) const;
  /// After the last backward. @throws StateError where one did not come through an identity that was used
  void check_reached() const;

  [[nodiscard]] at::Tensor coefficients_SE(int64_t forward, int64_t layer) const;

 private:
  void add_cells_of_tokens(int64_t forward, double weight, std::vector<CellPtr>& cells) const;
  void check_segments(int64_t forward, int64_t layer, const at::Tensor& scores_TE, const at::Tensor& segment_T);
  void check_range(int64_t forward, int64_t layer, const at::Tensor& segment_T);
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
  std::vector<CellPtr> z_cells_;          // [F * L] of [S, 1]; empty where the weight is 0
  std::vector<CellPtr> output_cells_;     // the same
  std::vector<at::Tensor> logits_passed_;  // [F * L], the segment_T that came with them; undefined: not passed
  std::vector<at::Tensor> probs_passed_;   // [F * L], the same
  std::vector<at::Tensor> checked_segments_F_;  // segment_T whose range was found right
};

}  // namespace switchyard
