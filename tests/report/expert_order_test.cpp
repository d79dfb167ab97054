#include "switchyard/report/expert_order.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <numeric>

namespace switchyard {
namespace {

using ::testing::ElementsAre;

TEST(TokenShares, AreTimesKOverTheRowSum) {
  // Two of four slots of domain 0 went to expert 1; with K = 2 that is every token.
  const auto shares = token_shares_NE({{1, 2, 1}, {0, 0, 0}}, 2);
  EXPECT_THAT(shares, ElementsAre(ElementsAre(0.5, 1.0, 0.5), ElementsAre(0.0, 0.0, 0.0)));
}

TEST(ExpertOrder, MakesAStaircaseOfSpecialists) {
  // Expert 2 serves domain 0 most, then 3; 0 serves domain 1; nobody uses 1.
  EXPECT_THAT(expert_order({{0.1, 0.0, 0.8, 0.6}, {0.9, 0.0, 0.2, 0.1}}), ElementsAre(2, 3, 0, 1));
}

TEST(ExpertOrder, BreaksTiesByIndexAndTakesEmptyTables) {
  EXPECT_THAT(expert_order({{0.5, 0.5}, {0.5, 0.5}}), ElementsAre(0, 1));
  EXPECT_THAT(expert_order({}), ElementsAre());
}

TEST(ExpertOrder, GivesATiedExpertToTheFirstDomain) {
  // Expert 0 is at home in domain 0; in domain 1 it would stand behind expert 1.
  EXPECT_THAT(expert_order({{0.5, 0.1}, {0.5, 0.9}}), ElementsAre(0, 1));
}

RC_GTEST_PROP(ExpertOrder, RelabelledExpertsGiveTheSamePicture, ()) {
  const auto num_domains = *rc::gen::inRange<std::size_t>(1, 5);
  const auto num_experts = *rc::gen::inRange<std::size_t>(1, 9);
  std::vector<std::vector<int64_t>> counts(num_domains, std::vector<int64_t>(num_experts));
  for (auto& row : counts) {
    for (int64_t& count : row) count = *rc::gen::inRange<int64_t>(0, 50);
  }
  std::vector<std::size_t> label(num_experts);
  std::iota(label.begin(), label.end(), std::size_t{0});
  std::rotate(label.begin(), label.begin() + static_cast<std::ptrdiff_t>(num_experts / 2), label.end());
  auto relabelled = counts;
  for (std::size_t d = 0; d < num_domains; ++d) {
    for (std::size_t e = 0; e < num_experts; ++e) relabelled[d][label[e]] = counts[d][e];
  }
  const auto heights = [](const std::vector<std::vector<int64_t>>& table) {
    const auto shares = token_shares_NE(table, 1);
    std::vector<double> tops;  // what the eye follows: the largest share of each column, in order
    for (const int64_t e : expert_order(shares)) {
      double top = 0.0;
      for (const auto& row : shares) top = std::max(top, row[static_cast<std::size_t>(e)]);
      tops.push_back(top);
    }
    return tops;
  };
  RC_ASSERT(heights(counts) == heights(relabelled));
  auto order = expert_order(token_shares_NE(counts, 1));
  std::sort(order.begin(), order.end());
  for (std::size_t e = 0; e < num_experts; ++e) RC_ASSERT(order[e] == static_cast<int64_t>(e));
}

}  // namespace
}  // namespace switchyard
