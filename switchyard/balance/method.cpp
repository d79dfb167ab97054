#include "switchyard/balance/method.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace switchyard {
namespace {

constexpr double kDivergenceEpsilon = 1e-6;

struct Moments {
  double num_experts = 0.0;
  double sum = 0.0;
  double squares = 0.0;
};

Moments moments_of(std::span<const double> values_E) {
  Moments moments{.num_experts = static_cast<double>(values_E.size())};
  for (const double value : values_E) {
    moments.sum += value;
    moments.squares += value * value;
  }
  return moments;
}

double jensen_shannon(std::span<const double> p_E, std::span<const double> q_E) {
  double sum = 0.0;
  for (size_t expert = 0; expert < p_E.size(); ++expert) {
    const double mean = 0.5 * (p_E[expert] + q_E[expert]);
    for (const double part : {p_E[expert], q_E[expert]}) {
      if (part > 0.0) sum += 0.5 * part * std::log(part / mean);
    }
  }
  return sum;
}

// Calls with the rows of each pair of domains that the group has.
template <typename Function>
void for_each_pair(const GroupStatistics& statistics, Function&& function) {
  const size_t num_domains = statistics.domain_sizes_N.size();
  const size_t num_experts = num_domains == 0 ? 0 : statistics.domain_means_NE.size() / num_domains;
  for (size_t first = 0; first < num_domains; ++first) {
    for (size_t second = first + 1; second < num_domains; ++second) {
      if (statistics.domain_sizes_N[first] == 0 || statistics.domain_sizes_N[second] == 0) continue;
      function(statistics.domain_means_NE.subspan(first * num_experts, num_experts),
               statistics.domain_means_NE.subspan(second * num_experts, num_experts), first, second);
    }
  }
}

}  // namespace

double lbl_value(const GroupStatistics& statistics) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  return num_experts *
         std::inner_product(statistics.fractions_E.begin(), statistics.fractions_E.end(), statistics.mean_probs_E.begin(), 0.0);
}

void lbl_slope(const GroupStatistics& statistics, std::span<double> slope_E) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  for (size_t expert = 0; expert < slope_E.size(); ++expert) slope_E[expert] = num_experts * statistics.fractions_E[expert];
}

double gshard_value(const GroupStatistics& statistics) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  return lbl_value(statistics) / (num_experts * num_experts);
}

void gshard_slope(const GroupStatistics& statistics, std::span<double> slope_E) {
  const auto num_experts = static_cast<double>(statistics.fractions_E.size());
  for (size_t expert = 0; expert < slope_E.size(); ++expert) slope_E[expert] = statistics.fractions_E[expert] / num_experts;
}

double variation_value(const GroupStatistics& statistics) {
  const Moments moments = moments_of(statistics.mean_probs_E);
  return moments.sum == 0.0 ? 0.0 : moments.num_experts * moments.squares / (moments.sum * moments.sum) - 1.0;
}

void variation_slope(const GroupStatistics& statistics, std::span<double> slope_E) {
  const Moments moments = moments_of(statistics.mean_probs_E);
  const double scale = moments.sum == 0.0 ? 0.0 : 2.0 * moments.num_experts / (moments.sum * moments.sum);
  for (size_t expert = 0; expert < slope_E.size(); ++expert) {
    slope_E[expert] = scale == 0.0 ? 0.0 : scale * (statistics.mean_probs_E[expert] - moments.squares / moments.sum);
  }
}

double negative_variance_value(const GroupStatistics& statistics) {
  double value = 0.0;
  for (size_t expert = 0; expert < statistics.mean_probs_E.size(); ++expert) {
    const double mean = statistics.mean_probs_E[expert];
    value -= statistics.mean_squares_E[expert] - mean * mean;
  }
  return value;
}

void negative_variance_slope(const GroupStatistics& statistics, std::span<double> slope_E) {
  for (size_t expert = 0; expert < slope_E.size(); ++expert) slope_E[expert] = 2.0 * statistics.mean_probs_E[expert];
}

double divergence_value(const GroupStatistics& statistics) {
  double sum = 0.0;
  int64_t pairs = 0;
  for_each_pair(statistics, [&](std::span<const double> p_E, std::span<const double> q_E, size_t, size_t) {
    sum -= std::log(jensen_shannon(p_E, q_E) + kDivergenceEpsilon);
    ++pairs;
  });
  return pairs == 0 ? 0.0 : sum / static_cast<double>(pairs);
}

// d JSD(p, q) / d p_e = 1/2 log(p_e / m_e), m their mean.
void divergence_slope(const GroupStatistics& statistics, std::span<double> slope_NE) {
  std::fill(slope_NE.begin(), slope_NE.end(), 0.0);
  int64_t pairs = 0;
  for_each_pair(statistics, [&](std::span<const double> p_E, std::span<const double> q_E, size_t p_row, size_t q_row) {
    ++pairs;
    const double outer = -1.0 / (jensen_shannon(p_E, q_E) + kDivergenceEpsilon);
    for (size_t expert = 0; expert < p_E.size(); ++expert) {
      const double mean = 0.5 * (p_E[expert] + q_E[expert]);
      if (p_E[expert] > 0.0) slope_NE[p_row * p_E.size() + expert] += outer * 0.5 * std::log(p_E[expert] / mean);
      if (q_E[expert] > 0.0) slope_NE[q_row * p_E.size() + expert] += outer * 0.5 * std::log(q_E[expert] / mean);
    }
  });
  for (double& slope : slope_NE) slope /= static_cast<double>(std::max<int64_t>(pairs, 1));
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
