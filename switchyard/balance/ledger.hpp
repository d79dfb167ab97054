#pragma once
// The book of one step on one rank: what each forward counted in each layer, once, however often the forward runs. S segments
// of this rank, F forwards, L MoE layers, E experts, M micro-batches.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/method.hpp"
#include "switchyard/balance/progress.hpp"
#include "switchyard/balance/statistics.hpp"
#include "switchyard/balance/step_plan.hpp"

namespace switchyard {

/// Sums over the tokens of a segment that the ledger keeps, [L, S, E] each.
enum class TokenSum { Probs, SquaredProbs, Load };
inline constexpr size_t kTokenSums = 3;

/// Keyed by (forward, layer); segments are those of the plan. Counts are int64 and exact, sums double.
class StepLedger {
 public:
  StepLedger(StepPlan plan, int64_t num_layers, int64_t num_experts);

  /// Takes the statistics of a forward. A repeat with equal counts changes nothing (the first run's sums are kept); with other
  /// counts it is a StateError that names step, forward, layer, segment and expert.
  /// @return whether it is the first record of this forward and layer
  /// @throws ShapeError when valid tokens differ from the plan
  bool record(int64_t forward, int64_t layer, const SegmentStatistics& statistics);

  /// All of it, bit for bit; restore() on a ledger of the same plan and shape.
  void save(StepProgress& progress) const;
  void restore(const StepProgress& progress);

  [[nodiscard]] bool has(int64_t forward, int64_t layer) const;
  /// Whether every record of the layer came with these sums; always true for Probs of a layer without records.
  [[nodiscard]] bool has_sums(TokenSum which, int64_t layer) const;

  [[nodiscard]] std::vector<int64_t> counts_E(Counted which, int64_t layer, const SegmentRange& range) const;
  [[nodiscard]] std::vector<double> sums_E(TokenSum which, int64_t layer, const SegmentRange& range) const;
  /// Sums of probabilities of one segment.
  [[nodiscard]] const double* segment_probs_E(int64_t layer, int64_t segment) const;
  [[nodiscard]] double squared_lse(int64_t layer) const;    // of the whole step
  [[nodiscard]] at::Tensor micro_batch_counts_MLE() const;  // int64

 private:
  template <typename Ledger, typename Body>
  static void for_each_part(Ledger& ledger, const Body& body);
  void check_tokens(int64_t forward, int64_t layer, const at::Tensor& tokens_S) const;
  void check_same_counts(int64_t forward, int64_t layer, const at::Tensor& counts_SE) const;
  void keep_sums(int64_t forward, int64_t layer, TokenSum which, const at::Tensor& sums_SE);

  StepPlan plan_;
  int64_t num_layers_;
  int64_t num_experts_;
  at::Tensor counts_LSE_;                      // int64
  at::Tensor first_counts_LSE_;                // int64
  std::vector<at::Tensor> sums_LSE_;           // double, by TokenSum
  std::vector<std::vector<bool>> has_sums_L_;  // by TokenSum; false as soon as one record of the layer came without
  at::Tensor lse_LS_;                          // double, sums of squares
  std::vector<bool> seen_;                     // [F * L]
};

}  // namespace switchyard
