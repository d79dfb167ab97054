#include "switchyard/core/min_cost_flow.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct Problem {
  std::vector<int64_t> supply_R;
  std::vector<int64_t> demand_C;
  std::vector<int64_t> capacity_RC;
  std::vector<int64_t> cost_RC;
};

int64_t cost_of(const Problem& problem, const std::vector<int64_t>& flow_RC) {
  return std::inner_product(flow_RC.begin(), flow_RC.end(), problem.cost_RC.begin(), int64_t{0});
}

// Tries every flow, cell by cell.
std::optional<int64_t> brute_force(const Problem& problem) {
  const size_t num_columns = problem.demand_C.size();
  std::vector<int64_t> supply_R = problem.supply_R;
  std::vector<int64_t> demand_C = problem.demand_C;
  std::optional<int64_t> best;
  const std::function<void(size_t, int64_t)> visit = [&](size_t cell, int64_t cost) {
    if (cell == problem.cost_RC.size()) {
      if (std::ranges::all_of(supply_R, [](int64_t left) { return left == 0; })) best = std::min(cost, best.value_or(cost));
      return;
    }
    int64_t& supply = supply_R[cell / num_columns];
    int64_t& demand = demand_C[cell % num_columns];
    const int64_t limit = std::min({supply, demand, problem.capacity_RC[cell]});
    for (int64_t amount = 0; amount <= limit; ++amount) {
      supply -= amount;
      demand -= amount;
      visit(cell + 1, cost + amount * problem.cost_RC[cell]);
      supply += amount;
      demand += amount;
    }
  };
  visit(0, 0);
  return best;
}

void expect_valid(const Problem& problem, const std::vector<int64_t>& flow_RC) {
  const size_t num_columns = problem.demand_C.size();
  std::vector<int64_t> shipped_R(problem.supply_R.size());
  std::vector<int64_t> received_C(num_columns);
  for (size_t cell = 0; cell < flow_RC.size(); ++cell) {
    EXPECT_GE(flow_RC[cell], 0);
    EXPECT_LE(flow_RC[cell], problem.capacity_RC[cell]);
    shipped_R[cell / num_columns] += flow_RC[cell];
    received_C[cell % num_columns] += flow_RC[cell];
  }
  EXPECT_EQ(shipped_R, problem.supply_R);
  for (size_t column = 0; column < num_columns; ++column) EXPECT_LE(received_C[column], problem.demand_C[column]);
}

std::vector<int64_t> random_values(Rng& rng, size_t count, int64_t lowest, int64_t highest) {
  std::vector<int64_t> values(count);
  for (int64_t& value : values) value = lowest + static_cast<int64_t>(rng.below(static_cast<uint64_t>(highest - lowest + 1)));
  return values;
}

Problem random_problem(Rng& rng) {
  const size_t num_rows = 1 + rng.below(3);
  const size_t num_columns = 1 + rng.below(3);
  return {random_values(rng, num_rows, 0, 3), random_values(rng, num_columns, 0, 4),
          random_values(rng, num_rows * num_columns, 0, 3), random_values(rng, num_rows * num_columns, -5, 5)};
}

TEST(MinCostTransport, EqualsBruteForce) {
  Rng rng(1, "transport");
  int solved = 0;
  int refused = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    const Problem problem = random_problem(rng);
    const std::optional<int64_t> best = brute_force(problem);
    const auto plan = [&] {
      return min_cost_transport(problem.supply_R, problem.demand_C, problem.capacity_RC, problem.cost_RC);
    };
    if (!best.has_value()) {
      EXPECT_THROW((void)plan(), ShapeError);
      ++refused;
      continue;
    }
    const TransportPlan result = plan();
    expect_valid(problem, result.flow_RC);
    EXPECT_EQ(cost_of(problem, result.flow_RC), *best);
    EXPECT_EQ(result.cost, static_cast<double>(*best));
    ++solved;
  }
  EXPECT_GT(solved, 500);
  EXPECT_GT(refused, 500);
}

TEST(MinCostTransport, RealCostsGiveTheSameAsTheirWholeMultiples) {
  Rng rng(2, "transport");
  for (int trial = 0; trial < 500; ++trial) {
    const Problem problem = random_problem(rng);
    if (!brute_force(problem).has_value()) continue;
    std::vector<double> cost_RC;
    for (const int64_t cost : problem.cost_RC) cost_RC.push_back(static_cast<double>(cost) * 0x1.0p-30);
    const TransportPlan whole =
        min_cost_transport(problem.supply_R, problem.demand_C, problem.capacity_RC, problem.cost_RC);
    const TransportPlan real = min_cost_transport(problem.supply_R, problem.demand_C, problem.capacity_RC, cost_RC);
    EXPECT_EQ(real.flow_RC, whole.flow_RC);
    EXPECT_EQ(real.cost, whole.cost * 0x1.0p-30);
  }
}

TEST(MinCostTransport, SolvesAssignmentsOfRealCosts) {
  constexpr size_t kSize = 6;
  Rng rng(3, "transport");
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<double> cost_RC(kSize * kSize);
    for (double& cost : cost_RC) cost = rng.normal();
    const std::vector<int64_t> ones(kSize, 1);
    const TransportPlan plan = min_cost_transport(ones, ones, std::vector<int64_t>(kSize * kSize, 1), cost_RC);
    std::vector<size_t> order(kSize);
    std::iota(order.begin(), order.end(), size_t{0});
    double best = std::numeric_limits<double>::infinity();
    do {
      double cost = 0.0;
      for (size_t row = 0; row < kSize; ++row) cost += cost_RC[row * kSize + order[row]];
      best = std::min(best, cost);
    } while (std::ranges::next_permutation(order).found);
    EXPECT_NEAR(plan.cost, best, 1e-12);
  }
}

TEST(MinCostTransport, OptimalityHoldsForLargeProblems) {
  // No brute force here: a flow is optimal exactly when the residual network has no negative cycle (Bellman-Ford).
  constexpr size_t kRows = 16;
  constexpr size_t kColumns = 64;
  Rng rng(4, "transport");
  Problem problem{std::vector<int64_t>(kRows, 4'000'000), std::vector<int64_t>(kColumns, 1'000'000),
                  std::vector<int64_t>(kRows * kColumns, 500'000), random_values(rng, kRows * kColumns, -1000, 1000)};
  const TransportPlan plan =
      min_cost_transport(problem.supply_R, problem.demand_C, problem.capacity_RC, problem.cost_RC);
  expect_valid(problem, plan.flow_RC);
  std::vector<int64_t> distance(kRows + kColumns, 0);
  bool changed = true;
  for (size_t round = 0; changed; ++round) {
    ASSERT_LT(round, kRows + kColumns) << "the flow can be improved along a cycle";
    changed = false;
    for (size_t cell = 0; cell < plan.flow_RC.size(); ++cell) {
      int64_t& row = distance[cell / kColumns];
      int64_t& column = distance[kRows + cell % kColumns];
      if (plan.flow_RC[cell] < problem.capacity_RC[cell] && row + problem.cost_RC[cell] < column) {
        column = row + problem.cost_RC[cell];
        changed = true;
      }
      if (plan.flow_RC[cell] > 0 && column - problem.cost_RC[cell] < row) {
        row = column - problem.cost_RC[cell];
        changed = true;
      }
    }
  }
}

TEST(MinCostTransport, TakesTheLargestAllowedValues) {
  constexpr int64_t kHuge = int64_t{1} << 57;
  const std::vector<int64_t> supply_R = {int64_t{1} << 60, int64_t{1} << 60};
  const std::vector<int64_t> capacity_RC(4, std::numeric_limits<int64_t>::max());
  const TransportPlan plan =
      min_cost_transport(supply_R, supply_R, capacity_RC, std::vector<int64_t>{kHuge, -kHuge, -kHuge, kHuge});
  EXPECT_EQ(plan.flow_RC, (std::vector<int64_t>{0, supply_R[0], supply_R[0], 0}));
  EXPECT_THROW((void)min_cost_transport(supply_R, supply_R, capacity_RC, std::vector<int64_t>(4, kHuge + 1)), ShapeError);
}

TEST(MinCostTransport, TakesEmptyProblems) {
  const std::vector<int64_t> none;
  EXPECT_TRUE(min_cost_transport(none, none, none, none).flow_RC.empty());
  EXPECT_THROW((void)min_cost_transport(std::vector<int64_t>{1}, none, none, none), ShapeError);
}

TEST(MinCostTransport, RefusesWrongInput) {
  const std::vector<int64_t> one = {1};
  const std::vector<int64_t> two = {2};
  const std::vector<int64_t> minus = {-1};
  EXPECT_THAT([&] { (void)min_cost_transport(two, one, two, one); },
              ThrowsMessage<ShapeError>(HasSubstr("only 1 of 2 units")));
  EXPECT_THROW((void)min_cost_transport(two, two, one, one), ShapeError);
  EXPECT_THROW((void)min_cost_transport(minus, one, one, one), ShapeError);
  EXPECT_THROW((void)min_cost_transport(one, minus, one, one), ShapeError);
  EXPECT_THROW((void)min_cost_transport(one, one, minus, one), ShapeError);
  EXPECT_THROW((void)min_cost_transport(one, one, std::vector<int64_t>(2, 1), one), ShapeError);
  EXPECT_THROW((void)min_cost_transport(one, one, one, std::vector<double>{std::nan("")}), ShapeError);
}

}  // namespace
}  // namespace switchyard
