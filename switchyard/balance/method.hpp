#pragma once
// What is done with the statistics that a scope added up: pure functions, which know no scope, step, layer or tensor graph.
// A new statistic loss is one such pair and one line in balance/table.cpp. E experts.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace switchyard {

/// One balance group in one layer.
struct GroupStatistics {
  std::span<const double> fractions_E;   // f: share of the routed slots, sums to 1 (to 0 where nothing is known); a constant
  std::span<const double> mean_probs_E;  // P: mean router probability of the group's tokens, sums to 1
};

/// A loss of a group's statistics with counts held constant. Null functions: the method `none`.
struct StatisticMethod {
  double (*value)(const GroupStatistics& statistics) = nullptr;
  /// d value / d P_e into slope_E. mean_probs_E may be empty: a loss that is linear in P does not read it, so its
  /// coefficients exist as soon as the counts do.
  void (*slope)(const GroupStatistics& statistics, std::span<double> slope_E) = nullptr;
};

/// E * sum_e f_e P_e (arXiv 2101.03961, eq. 4, with f over slots, so that balance gives 1 for every K). 1 where either is
/// uniform; not bounded below by 1.
[[nodiscard]] double lbl_value(const GroupStatistics& statistics);
void lbl_slope(const GroupStatistics& statistics, std::span<double> slope_E);

/// @throws ConfigError with the known names and the nearest one
[[nodiscard]] const StatisticMethod& find_method(std::string_view name);

/// f = C / sum_e C; zeros where nothing was counted.
[[nodiscard]] std::vector<double> fractions(std::span<const int64_t> counts_E);

}  // namespace switchyard
