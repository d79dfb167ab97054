#include "switchyard/report/expert_order.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <tuple>

namespace switchyard {

std::vector<std::vector<double>> token_shares_NE(const std::vector<std::vector<int64_t>>& counts_NE, int64_t num_chosen) {
  std::vector<std::vector<double>> shares_NE;
  for (const std::vector<int64_t>& counts_E : counts_NE) {
    const int64_t total = std::accumulate(counts_E.begin(), counts_E.end(), int64_t{0});
    std::vector<double>& shares_E = shares_NE.emplace_back(counts_E.size(), 0.0);
    if (total == 0) continue;
    for (std::size_t e = 0; e < counts_E.size(); ++e) {
      shares_E[e] = static_cast<double>(num_chosen) * static_cast<double>(counts_E[e]) / static_cast<double>(total);
    }
  }
  return shares_NE;
}

std::vector<int64_t> expert_order(const std::vector<std::vector<double>>& shares_NE) {
  const std::size_t num_experts = shares_NE.empty() ? 0 : shares_NE.front().size();
  const auto rank = [&](int64_t expert) {
    std::size_t home = shares_NE.size();  // of an expert that nobody uses
    double share = 0.0;
    for (std::size_t d = 0; d < shares_NE.size(); ++d) {
      const double here = shares_NE[d][static_cast<std::size_t>(expert)];
      if (here > share) {
        home = d;
        share = here;
      }
    }
    return std::tuple(home, -share, expert);
  };
  std::vector<int64_t> order(num_experts);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return rank(a) < rank(b); });
  return order;
}

}  // namespace switchyard
