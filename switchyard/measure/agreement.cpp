#include "switchyard/measure/agreement.hpp"

#include <algorithm>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/min_cost_flow.hpp"

namespace switchyard {
namespace {

int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

std::vector<int64_t> domains_with_slots(const Matrix<double>& joint_NE) {
  std::vector<int64_t> present;
  for (int64_t d = 0; d < joint_NE.rows(); ++d) {
    const auto row = joint_NE.row(d);
    if (std::any_of(row.begin(), row.end(), [](double share) { return share > 0.0; })) present.push_back(d);
  }
  return present;
}

}  // namespace

Agreement best_agreement(const Matrix<double>& joint_NE, int64_t num_chosen) {
  const int64_t num_experts = joint_NE.columns();
  SWITCHYARD_CHECK(num_chosen >= 1 && num_chosen <= num_experts, ShapeError, "agreement: ", num_chosen, " chosen of ",
                   num_experts, " experts; expected 1 to E");
  Agreement result;
  result.assignment_NE = Matrix<int64_t>(joint_NE.rows(), num_experts);
  const std::vector<int64_t> present = domains_with_slots(joint_NE);
  if (present.empty()) return result;

  const auto num_present = static_cast<int64_t>(present.size());
  const int64_t experts_each = std::max(num_chosen, divide_up(num_experts, num_present));
  const int64_t domains_each = divide_up(experts_each * num_present, num_experts);
  result.floor = static_cast<double>(experts_each) / static_cast<double>(num_experts);

  std::vector<int64_t> supply(present.size(), experts_each);
  const std::vector<int64_t> demand(static_cast<size_t>(num_experts), domains_each);
  std::vector<double> cost;
  for (const int64_t domain : present) {
    for (const double share : joint_NE.row(domain)) cost.push_back(-share);
  }
  // A filler takes at most one place of each expert, so that experts differ by at most one domain.
  const int64_t left_over = domains_each * num_experts - experts_each * num_present;
  if (left_over > 0) {
    supply.push_back(left_over);
    cost.resize(cost.size() + static_cast<size_t>(num_experts), 0.0);
  }
  const std::vector<int64_t> capacity(cost.size(), 1);
  const TransportPlan plan = min_cost_transport(supply, demand, capacity, cost);
  for (size_t i = 0; i < present.size(); ++i) {
    for (int64_t e = 0; e < num_experts; ++e) {
      if (plan.flow_RC[i * static_cast<size_t>(num_experts) + static_cast<size_t>(e)] == 0) continue;
      result.assignment_NE(present[i], e) = 1;
      result.value += joint_NE(present[i], e);
    }
  }
  return result;
}

}  // namespace switchyard
