#pragma once
// What is done with the statistics that a scope added up: pure functions, which know no scope, step, layer or tensor graph.
// A new statistic loss is one such pair and one line in balance/table.cpp. E experts, N domains.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace switchyard {

/// One balance group in one layer. A method finds what it declares to read; the rest is empty.
struct GroupStatistics {
  std::span<const double> fractions_E{};     // f: share of the counted choices, sums to 1 (0 if nothing is known); a constant
  std::span<const double> mean_probs_E{};    // mean over its tokens of what `Score` names: router probabilities or smooth load
  std::span<const double> mean_squares_E{};  // mean squared probability
  std::span<const double> domain_means_NE{};   // mean over the domain's sequences of a sequence's mean probability
  std::span<const int64_t> domain_sizes_N{};   // sequences of each domain in the group; rows of empty domains hold zeros
};

enum class Counted { Slots, FirstChoices };       // of which choices f is the share
enum class Score { Probs, Load };                 // what is averaged over tokens, and so where the gradient enters
enum class SlopeReads { Fractions, Means, DomainMeans };  // what must be added up before the slope is known

/// A loss of a group's statistics with counts held constant. Null functions: the method `none`.
struct StatisticMethod {
  double (*value)(const GroupStatistics& statistics) = nullptr;
  /// d value / d mean_probs_E into slope, or d value / d domain_means_NE for DomainMeans. A loss that is linear in the mean
  /// reads fractions alone, so its coefficients exist as soon as the counts do.
  void (*slope)(const GroupStatistics& statistics, std::span<double> slope) = nullptr;
  SlopeReads reads = SlopeReads::Fractions;
  Counted counted = Counted::Slots;
  Score score = Score::Probs;
  double curvature = 0.0;  // d value / d (mean square) per expert; not 0 only for losses of the variance
};

/// E * sum_e f_e P_e (arXiv 2101.03961, eq. 4, with f over slots, so that balance gives 1 for every K). 1 where either is
/// uniform; not bounded below by 1.
[[nodiscard]] double lbl_value(const GroupStatistics& statistics);
void lbl_slope(const GroupStatistics& statistics, std::span<double> slope_E);

/// 1/E * sum_e f_e P_e with f over first choices (arXiv 2006.16668, Algorithm 1). 1/E^2 at balance.
[[nodiscard]] double gshard_value(const GroupStatistics& statistics);
void gshard_slope(const GroupStatistics& statistics, std::span<double> slope_E);

/// Squared coefficient of variation of the mean score over experts, population variance over squared mean (arXiv 1701.06538,
/// eq. 7 for importance and eq. 11 for load). 0 at balance, E - 1 if one expert has all.
[[nodiscard]] double variation_value(const GroupStatistics& statistics);
void variation_slope(const GroupStatistics& statistics, std::span<double> slope_E);

/// -sum_e variance over tokens of p_e (the variance loss of arXiv 2505.22323): in [-1, 0], falls as choices get sharp.
[[nodiscard]] double negative_variance_value(const GroupStatistics& statistics);
void negative_variance_slope(const GroupStatistics& statistics, std::span<double> slope_E);

/// Mean over pairs of domains of -log(JSD + 1e-6), JSD the Jensen-Shannon divergence in nats of their mean probabilities
/// (arXiv 2603.00054). 0 with fewer than two domains. Smallest, -log ln 2, where domains share no expert.
[[nodiscard]] double divergence_value(const GroupStatistics& statistics);
void divergence_slope(const GroupStatistics& statistics, std::span<double> slope_NE);

enum class BalancerKind { Method, Setting };  // what balance.method can name, or a key of the config beside it

struct BalancerEntry {
  std::string_view name;
  std::string_view description;  // one line
  std::string_view source;       // arXiv id or "own"
  BalancerKind kind = BalancerKind::Method;
};

/// All ways of balancing: methods first, then settings.
[[nodiscard]] const std::vector<BalancerEntry>& balancer_table();
/// @throws ConfigError with the known methods and the nearest one
[[nodiscard]] const StatisticMethod& find_method(std::string_view name);

/// f = C / sum_e C; zeros where nothing was counted.
[[nodiscard]] std::vector<double> fractions(std::span<const int64_t> counts_E);

}  // namespace switchyard
