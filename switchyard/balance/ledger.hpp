#pragma once
// The book of one step: what each forward counted in each layer, once, however often the forward runs. S segments of the step,
// F forwards, L MoE layers, E experts, M micro-batches.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/statistics.hpp"
#include "switchyard/balance/step_plan.hpp"

namespace switchyard {

/// Keyed by (forward, layer); segments are those of the plan. Counts are int64 and exact, sums double.
class StepLedger {
 public:
  StepLedger(StepPlan plan, int64_t num_layers, int64_t num_experts);

  /// Takes the statistics of a forward. A repeat with equal counts changes nothing (the first run's sums are kept); with other
  /// counts it is a StateError that names step, forward, layer, segment and expert.
  /// @throws ShapeError when valid tokens differ from the plan
  void record(int64_t forward, int64_t layer, const SegmentStatistics& statistics);

  [[nodiscard]] bool has(int64_t forward, int64_t layer) const;
  /// Whether every record of the layer came with probabilities (squared logsumexp): without them there is no value.
  [[nodiscard]] bool has_probs(int64_t layer) const;
  [[nodiscard]] bool has_squared_lse(int64_t layer) const;

  [[nodiscard]] std::vector<int64_t> counts_E(int64_t layer, const SegmentRange& range) const;
  [[nodiscard]] std::vector<double> prob_sums_E(int64_t layer, const SegmentRange& range) const;
  [[nodiscard]] double squared_lse(int64_t layer) const;    // of the whole step
  [[nodiscard]] at::Tensor step_counts_LE() const;          // int64
  [[nodiscard]] at::Tensor micro_batch_counts_MLE() const;  // int64

 private:
  struct LayerScores {  // false as soon as one record of the layer came without
    bool probs = true;
    bool squared_lse = true;
  };

  void check_tokens(int64_t forward, int64_t layer, const at::Tensor& tokens_S) const;
  void check_same_counts(int64_t forward, int64_t layer, const at::Tensor& counts_SE) const;

  StepPlan plan_;
  int64_t num_layers_;
  int64_t num_experts_;
  at::Tensor counts_LSE_;     // int64
  at::Tensor prob_sums_LSE_;  // double
  at::Tensor lse_LS_;         // double, sums of squares
  std::vector<bool> seen_;    // [F * L]
  std::vector<LayerScores> scores_L_;
};

}  // namespace switchyard
