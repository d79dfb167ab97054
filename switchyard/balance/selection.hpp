#pragma once
// Balancing without a loss: offsets that are added to scores when experts are chosen, never to combine weights. They follow
// from the load of a whole step, once per optimizer step; the step itself chooses with the old ones. T tokens, L MoE layers,
// E experts, K chosen, M micro-batches.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/progress.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/balance/state.hpp"
#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/routing.hpp"

namespace switchyard {

/// Loss-free bias: b += rate * sign(mean load - load) per expert, less its mean for BiasCentered (arXiv 2408.15664,
/// Algorithm 1). Exact: sign by int64 comparison of E * load with the sum.
/// @param counts_LE  int64
/// @return fp32 [L, E]
[[nodiscard]] at::Tensor updated_bias(const at::Tensor& bias_LE, const at::Tensor& counts_LE, const SelectionConfig& config);

/// Thresholds of one layer as a histogram sees them: r_te = s_te - a_t, with a_t the (K + 1)-th largest of s_t - b, b the old
/// thresholds. Bins of equal width between min b - 1 and max b + 1, one below, one above, so that ranks can add counts.
struct ThresholdBins {
  static constexpr int64_t kBins = 1000;
  double low = -1.0;
  double high = 1.0;

  [[nodiscard]] int64_t bin_of(double value) const;     // [0, kBins + 2)
  [[nodiscard]] double lower_edge(int64_t bin) const;   // of a bin between the outer two
};

/// The threshold with `above` values over it, found in counts of ThresholdBins by interpolation within a bin; at the edge of
/// the range where it lies outside, so that the next steps, whose range moves with it, reach it.
/// @param counts  kBins + 2
[[nodiscard]] double threshold_of(const ThresholdBins& bins, const int64_t* counts, double above);

/// Gathers one step's statistics for a rule and updates the offsets from them.
class SelectionStep {
 public:
  /// @param state  one that check_state() let pass
  /// @throws UsageError for Quantile rules unless K < E
  SelectionStep(const SelectionConfig& config, const BalanceShape& shape, const BalanceState& state);

  /// Offsets to add to the layer's scores, fp32 [E]; undefined without a rule.
  [[nodiscard]] at::Tensor offsets_E(int64_t layer) const;

  /// Once per forward and layer. Needs logits for the Quantile rules.
  /// @param segment_T       -1 for padding
  /// @param micro_batch_S   of the forward's segments
  void record(int64_t layer, const Routing& routing, const at::Tensor& segment_T, const std::vector<int64_t>& micro_batch_S);

  /// Adds up over ranks, once: a repeat changes nothing. Collective if a Quantile rule is on.
  /// @param replica  above 0: this rank's tokens are those of another
  void close(Communicator& comm, int64_t replica);

  /// What was gathered so far, bit for bit.
  void save(StepProgress& progress) const;
  void restore(const StepProgress& progress);

  /// @param counts_LE    int64, of all ranks
  /// @param step_tokens  valid tokens of all ranks, above 0
  void update(const at::Tensor& counts_LE, int64_t step_tokens, BalanceState& state) const;

 private:
  [[nodiscard]] bool quantile() const;
  [[nodiscard]] const float* old_offsets(int64_t layer) const;
  [[nodiscard]] ThresholdBins bins_of(int64_t layer) const;
  void record_micro_batch(int64_t layer, const at::Tensor& logits_TE);
  /// threshold_sums_LE_, then micro_batches_L_: how both travel and are saved.
  [[nodiscard]] std::vector<double> packed_thresholds() const;
  void unpack_thresholds(const std::vector<double>& packed);
  /// @param above  how many values are to lie over each
  [[nodiscard]] std::vector<double> updated_thresholds_E(int64_t layer, double above) const;

  SelectionConfig config_;
  BalanceShape shape_;
  at::Tensor offsets_LE_;                  // fp32, of the step under way
  std::vector<int64_t> histogram_;         // [L, E, kBins + 2]; Quantile only
  std::vector<double> threshold_sums_LE_;  // over micro-batches; MeanQuantile only
  std::vector<double> micro_batches_L_;    // how many; MeanQuantile only
  bool closed_ = false;                    // whether these are of all ranks
};

}  // namespace switchyard
