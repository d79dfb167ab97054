#include "switchyard/router/prescribed_share.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/min_cost_flow.hpp"

namespace switchyard {
namespace {

// (2 N E)^2 times the squared circular distance of (d + .5) / N and (e + .5) / E: whole numbers, so the optimum is exact.
std::vector<int64_t> squared_distances_NE(int64_t num_domains, int64_t num_experts) {
  const int64_t circle = 2 * num_domains * num_experts;
  std::vector<int64_t> costs_NE;
  for (int64_t domain = 0; domain < num_domains; ++domain) {
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      const int64_t apart = std::abs((2 * domain + 1) * num_experts - (2 * expert + 1) * num_domains);
      const int64_t distance = std::min(apart, circle - apart);
      costs_NE.push_back(distance * distance);
    }
  }
  return costs_NE;
}

}  // namespace

at::Tensor prescribed_units_NE(int64_t num_domains, int64_t num_experts, int64_t num_chosen) {
  SWITCHYARD_CHECK(num_domains >= 1, UsageError, "prescribed routing: the data has ", num_domains,
                   " domains; it needs domain labels, so train on a data set of at least one domain or use another router");
  SWITCHYARD_CHECK(num_chosen >= 1 && num_chosen <= num_experts, UsageError, "prescribed routing: ", num_chosen, " chosen of ",
                   num_experts, " experts; expected 1 <= num_chosen <= num_experts");
  const std::vector<int64_t> supply_N(static_cast<size_t>(num_domains), num_chosen * num_experts);
  const std::vector<int64_t> demand_E(static_cast<size_t>(num_experts), num_domains * num_chosen);
  const std::vector<int64_t> capacity_NE(static_cast<size_t>(num_domains * num_experts), num_experts);
  const TransportPlan plan =
      min_cost_transport(supply_N, demand_E, capacity_NE, squared_distances_NE(num_domains, num_experts));
  at::Tensor units_NE = at::empty({num_domains, num_experts}, at::kLong);
  std::copy(plan.flow_RC.begin(), plan.flow_RC.end(), units_NE.mutable_data_ptr<int64_t>());
  return units_NE;
}

at::Tensor prescribed_share_NE(int64_t num_domains, int64_t num_experts, int64_t num_chosen) {
  return prescribed_units_NE(num_domains, num_experts, num_chosen).to(at::kDouble).div(static_cast<double>(num_experts));
}

}  // namespace switchyard
