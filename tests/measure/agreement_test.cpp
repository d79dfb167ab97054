#include "switchyard/measure/agreement.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "switchyard/measure/specialization.hpp"
#include "tests/measure/draw.hpp"

namespace switchyard {
namespace {

using Counts = Matrix<int64_t>;

// Tries every assignment: rows of m experts, experts of `fewest` to `most` domains.
double best_by_trial(const Matrix<double>& joint_NE, int64_t m) {
  const int64_t places = joint_NE.rows() * m;
  const int64_t fewest = places / joint_NE.columns();
  const int64_t most = (places + joint_NE.columns() - 1) / joint_NE.columns();
  std::vector<int64_t> used(static_cast<size_t>(joint_NE.columns()));
  double best = -1.0;
  const std::function<void(int64_t, double)> assign = [&](int64_t domain, double value) {
    if (domain == joint_NE.rows()) {
      const auto [low, high] = std::ranges::minmax(used);
      if (low >= fewest && high <= most) best = std::max(best, value);
      return;
    }
    for (uint32_t set = 0; set < (1u << joint_NE.columns()); ++set) {
      if (std::popcount(set) != m) continue;
      double sum = value;
      for (int64_t e = 0; e < joint_NE.columns(); ++e) {
        if ((set >> e & 1u) == 0) continue;
        ++used[static_cast<size_t>(e)];
        sum += joint_NE(domain, e);
      }
      assign(domain + 1, sum);
      for (int64_t e = 0; e < joint_NE.columns(); ++e) used[static_cast<size_t>(e)] -= (set >> e & 1u);
    }
  };
  assign(0, 0.0);
  return best;
}

TEST(Agreement, MatchesHandWorkedNumbers) {
  // One expert each, the other way round: domain 0 to expert 1.
  const Agreement crossed = best_agreement(joint_shares(Counts({{1, 3}, {3, 1}})), 1);
  EXPECT_DOUBLE_EQ(crossed.value, 0.75);
  EXPECT_DOUBLE_EQ(crossed.floor, 0.5);
  EXPECT_EQ(crossed.assignment_NE, Counts({{0, 1}, {1, 0}}));
  // Both domains prefer expert 0, but only one may have it.
  EXPECT_DOUBLE_EQ(best_agreement(joint_shares(Counts({{10, 0}, {9, 1}})), 1).value, 0.5 * (1.0 + 0.1));
}

TEST(Agreement, OfPrescribedRoutingIsOneAndOfEvenRoutingTheFloor) {
  const Counts own({{5, 5, 0, 0, 0, 0}, {0, 0, 7, 7, 0, 0}, {0, 0, 0, 0, 1, 1}});
  EXPECT_DOUBLE_EQ(best_agreement(joint_shares(own), 2).value, 1.0);
  // Four domains share two pairs.
  const Counts shared({{3, 3, 0, 0}, {0, 0, 2, 2}, {4, 4, 0, 0}, {0, 0, 1, 1}});
  EXPECT_DOUBLE_EQ(best_agreement(joint_shares(shared), 2).value, 1.0);
  const Counts even({{2, 2, 2, 2, 2, 2}, {1, 1, 1, 1, 1, 1}, {3, 3, 3, 3, 3, 3}});
  const Agreement level = best_agreement(joint_shares(even), 2);
  EXPECT_NEAR(level.value, level.floor, 1e-15);
  EXPECT_DOUBLE_EQ(level.floor, 1.0 / 3.0);
}

// Three domains and seven experts: m = 3, two of nine places are an expert's second.
TEST(Agreement, ReachesOneForDisjointExpertsThatDoNotDivide) {
  const Counts disjoint({{2, 2, 2, 0, 0, 0, 0}, {0, 0, 0, 4, 4, 0, 0}, {0, 0, 0, 0, 0, 3, 3}});
  const Agreement agreement = best_agreement(joint_shares(disjoint), 2);
  EXPECT_DOUBLE_EQ(agreement.value, 1.0);
  EXPECT_DOUBLE_EQ(agreement.floor, 3.0 / 7.0);
}

TEST(Agreement, LeavesOutDomainsWithoutSlots) {
  const Agreement agreement = best_agreement(joint_shares(Counts({{1, 3}, {0, 0}, {3, 1}})), 1);
  EXPECT_DOUBLE_EQ(agreement.value, 0.75);
  EXPECT_EQ(agreement.assignment_NE, Counts({{0, 1}, {0, 0}, {1, 0}}));
  const Agreement none = best_agreement(joint_shares(Counts(2, 2)), 1);
  EXPECT_EQ(none.value, 0.0);
  EXPECT_EQ(none.floor, 0.0);
}

TEST(Agreement, RefusesAnImpossibleChoice) {
  EXPECT_THROW((void)best_agreement(joint_shares(Counts({{1, 3}})), 3), ShapeError);
  EXPECT_THROW((void)best_agreement(joint_shares(Counts({{1, 3}})), 0), ShapeError);
}

TEST(Agreement, IsTheBestOfAllAssignments) {
  EXPECT_TRUE(rc::check([] {
    const int64_t domains = draw(1, 4);
    const int64_t experts = draw(1, 6);
    const int64_t chosen = draw(1, experts + 1);
    Counts counts(domains, experts);
    for (int64_t d = 0; d < domains; ++d) {
      for (int64_t& count : counts.row(d)) count = draw(0, 20);
      counts(d, 0) += 1;
    }
    const Matrix<double> joint_NE = joint_shares(counts);
    const int64_t m = std::max(chosen, (experts + domains - 1) / domains);
    const Agreement agreement = best_agreement(joint_NE, chosen);
    RC_ASSERT(std::abs(agreement.value - best_by_trial(joint_NE, m)) < 1e-12);
    RC_ASSERT(agreement.value >= agreement.floor - 1e-12 && agreement.value <= 1.0 + 1e-12);
    for (int64_t d = 0; d < domains; ++d) {
      const auto row = agreement.assignment_NE.row(d);
      RC_ASSERT(std::accumulate(row.begin(), row.end(), int64_t{0}) == m);
    }
  }));
}

}  // namespace
}  // namespace switchyard
