#include "switchyard/balance/method.hpp"

#include <numeric>

namespace switchyard {

double lbl_value(const GroupStatistics& statistics) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  return num_experts *
         std::inner_product(statistics.fractions_E.begin(), statistics.fractions_E.end(), statistics.mean_probs_E.begin(), 0.0);
}

void lbl_slope(const GroupStatistics& statistics, std::span<double> slope_E) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  for (size_t expert = 0; expert < slope_E.size(); ++expert) slope_E[expert] = num_experts * statistics.fractions_E[expert];
}

std::vector<double> fractions(std::span<const int64_t> counts_E) {
  const int64_t total = std::accumulate(counts_E.begin(), counts_E.end(), int64_t{0});
  std::vector<double> fractions_E(counts_E.size(), 0.0);
  if (total == 0) return fractions_E;
  for (size_t expert = 0; expert < counts_E.size(); ++expert) {
    fractions_E[expert] = static_cast<double>(counts_E[expert]) / static_cast<double>(total);
  }
  return fractions_E;
}

}  // namespace switchyard
