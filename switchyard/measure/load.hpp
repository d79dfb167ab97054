#pragma once
// How evenly expert counts use the experts. Pure functions of counts; the scope of a number is that of the counts it is made of:
// over several groups of tokens, metrics of the summed counts ("global") and means of the groups' metrics ("micro-batch") differ.

#include <cstdint>
#include <span>

namespace switchyard {

/// How evenly one set of expert counts uses the experts. Scope: that of the counts. f_e is the fraction of expert e.
struct LoadMetrics {
  double max_vio = 0.0;       // max_e f_e E - 1: 0 even, E - 1 all on one expert (name: arXiv 2408.15664)
  double utilization = 0.0;   // sum_e min(f_e, 1/E), in [1/E, 1]
  double dead_experts = 0.0;  // experts without a token; a mean over groups at micro-batch scope
  double entropy = 0.0;       // of f, nats, at most ln E
  double variation = 0.0;     // coefficient of variation of the counts: population deviation over mean, at most sqrt(E - 1)

  bool operator==(const LoadMetrics&) const = default;
};

/// Counts without a single slot measure nothing: max_vio, utilization, entropy and variation are 0 and every expert is dead.
/// (Utilization 0 occurs in no other case, so it marks this one.)
/// @param counts_E  slots of each expert, >= 0; their sum must fit int64
/// @throws ShapeError for no experts, a negative count or a sum that does not fit
[[nodiscard]] LoadMetrics load_metrics(std::span<const int64_t> counts_E);

/// Field by field; zeros for none.
[[nodiscard]] LoadMetrics mean_load(std::span<const LoadMetrics> groups);

}  // namespace switchyard
