#include "switchyard/measure/load.hpp"

#include <algorithm>
#include <cmath>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

int64_t checked_sum(std::span<const int64_t> counts_E) {
  int64_t total = 0;
  for (size_t e = 0; e < counts_E.size(); ++e) {
    SWITCHYARD_CHECK(counts_E[e] >= 0, ShapeError, "load metrics: expert ", e, " has the count ", counts_E[e],
                     "; expected at least 0");
    SWITCHYARD_CHECK(!__builtin_add_overflow(total, counts_E[e], &total), ShapeError,
                     "load metrics: the sum of the counts does not fit 64 bits");
  }
  return total;
}

}  // namespace

LoadMetrics load_metrics(std::span<const int64_t> counts_E) {
  SWITCHYARD_CHECK(!counts_E.empty(), ShapeError, "load metrics of no experts; expected at least 1");
  const int64_t total = checked_sum(counts_E);
  LoadMetrics metrics;
  metrics.dead_experts = static_cast<double>(std::count(counts_E.begin(), counts_E.end(), 0));
  if (total == 0) return metrics;

  const double num_experts = static_cast<double>(counts_E.size());
  const double slots = static_cast<double>(total);
  double squares = 0.0;
  double largest = 0.0;
  for (const int64_t count : counts_E) {
    // Relative to the even load, which is 1: exact wherever the loads are even.
    const double load = static_cast<double>(count) * num_experts / slots;
    const double fraction = static_cast<double>(count) / slots;
    largest = std::max(largest, load);
    metrics.utilization += std::min(load, 1.0);
    if (count > 0) metrics.entropy -= fraction * std::log(fraction);
    squares += (load - 1.0) * (load - 1.0);
  }
  metrics.max_vio = largest - 1.0;
  metrics.utilization /= num_experts;
  metrics.variation = std::sqrt(squares / num_experts);
  return metrics;
}

LoadMetrics mean_load(std::span<const LoadMetrics> groups) {
  LoadMetrics mean;
  if (groups.empty()) return mean;
  for (const LoadMetrics& group : groups) {
    mean.max_vio += group.max_vio;
    mean.utilization += group.utilization;
    mean.dead_experts += group.dead_experts;
    mean.entropy += group.entropy;
    mean.variation += group.variation;
  }
  const double count = static_cast<double>(groups.size());
  mean.max_vio /= count;
  mean.utilization /= count;
  mean.dead_experts /= count;
  mean.entropy /= count;
  mean.variation /= count;
  return mean;
}

}  // namespace switchyard
