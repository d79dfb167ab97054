#include "switchyard/measure/load.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "tests/measure/draw.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using Counts = std::vector<int64_t>;

TEST(LoadMetrics, MatchHandWorkedNumbers) {
  // f = (.5, .25, .25, 0), E = 4: loads 2, 1, 1, 0.
  const LoadMetrics metrics = load_metrics(Counts{4, 2, 2, 0});
  EXPECT_DOUBLE_EQ(metrics.max_vio, 1.0);
  EXPECT_DOUBLE_EQ(metrics.utilization, 0.75);
  EXPECT_DOUBLE_EQ(metrics.dead_experts, 1.0);
  EXPECT_NEAR(metrics.entropy, 1.5 * std::log(2.0), 1e-15);  // .5 ln 2 + 2 * .25 ln 4
  EXPECT_NEAR(metrics.variation, std::sqrt(0.5), 1e-15);     // deviations 1, 0, 0, -1
}

TEST(LoadMetrics, OfEvenCountsAreExact) {
  const LoadMetrics metrics = load_metrics(Counts(7, 3));
  EXPECT_EQ(metrics.max_vio, 0.0);
  EXPECT_EQ(metrics.utilization, 1.0);
  EXPECT_EQ(metrics.dead_experts, 0.0);
  EXPECT_EQ(metrics.variation, 0.0);
  EXPECT_NEAR(metrics.entropy, std::log(7.0), 1e-15);
}

TEST(LoadMetrics, OfCollapsedCountsReachTheirEnds) {
  const LoadMetrics metrics = load_metrics(Counts{0, 9, 0, 0});
  EXPECT_EQ(metrics.max_vio, 3.0);
  EXPECT_EQ(metrics.utilization, 0.25);
  EXPECT_EQ(metrics.dead_experts, 3.0);
  EXPECT_EQ(metrics.entropy, 0.0);
  EXPECT_DOUBLE_EQ(metrics.variation, std::sqrt(3.0));
}

TEST(LoadMetrics, OfNoSlotsAreDefined) {
  EXPECT_EQ(load_metrics(Counts(5, 0)), (LoadMetrics{0.0, 0.0, 5.0, 0.0, 0.0}));
}

TEST(LoadMetrics, CountBeyondThirtyTwoBits) {
  const int64_t large = (int64_t{1} << 31) + 1;
  EXPECT_EQ(load_metrics(Counts{large, large, large, large}).max_vio, 0.0);
  EXPECT_EQ(load_metrics(Counts{3 * large, large}).max_vio, 0.5);
}

// Two micro-batches that are uneven in opposite ways: what one scope shows, the other does not (B26 of balance_peers.md).
TEST(LoadMetrics, OfTheSumAreNotTheMeanOfTheParts) {
  const std::vector<LoadMetrics> parts = {load_metrics(Counts{8, 0}), load_metrics(Counts{0, 8})};
  EXPECT_EQ(mean_load(parts).max_vio, 1.0);
  EXPECT_EQ(mean_load(parts).dead_experts, 1.0);
  EXPECT_EQ(load_metrics(Counts{8, 8}).max_vio, 0.0);
  EXPECT_EQ(load_metrics(Counts{8, 8}).dead_experts, 0.0);
  EXPECT_EQ(mean_load({}), LoadMetrics{});
}

// B16: the loss can be below 1 and is blind to a full collapse under even probabilities; the load is neither.
TEST(LoadMetrics, SeeTheCollapseThatTheLossDoesNotSee) {
  const auto lbl = [](const Counts& counts, const std::vector<double>& probs) {
    double sum = 0.0;
    for (size_t e = 0; e < counts.size(); ++e) sum += static_cast<double>(counts[e]) * probs[e];
    return sum * static_cast<double>(counts.size()) / static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  };
  const Counts uneven = {6, 4};
  EXPECT_NEAR(lbl(uneven, {0.31, 0.69}), 0.924, 1e-12);
  EXPECT_NEAR(load_metrics(uneven).max_vio, 0.2, 1e-12);
  const Counts collapsed = {100, 0, 0, 0};
  EXPECT_EQ(lbl(collapsed, {0.25, 0.25, 0.25, 0.25}), 1.0);
  EXPECT_EQ(load_metrics(collapsed).max_vio, 3.0);
}

TEST(LoadMetrics, RefuseWhatIsNotACount) {
  EXPECT_THROW((void)load_metrics(Counts{}), ShapeError);
  const int64_t half = std::numeric_limits<int64_t>::max() / 2 + 1;
  EXPECT_THROW((void)load_metrics(Counts{half, half}), ShapeError);
  try {
    (void)load_metrics(Counts{1, -2});
    FAIL() << "a negative count was taken";
  } catch (const ShapeError& error) {
    EXPECT_THAT(error.what(), HasSubstr("expert 1 has the count -2"));
  }
}

Counts any_counts() {
  Counts counts(static_cast<size_t>(draw(1, 70)));
  for (int64_t& count : counts) count = draw(0, 3) == 0 ? 0 : draw(0, 1000);
  counts[static_cast<size_t>(draw(0, static_cast<int64_t>(counts.size())))] += 1;
  return counts;
}

TEST(LoadMetrics, StayInRangeAndIgnoreOrderAndScale) {
  EXPECT_TRUE(rc::check([] {
    Counts counts = any_counts();
    const LoadMetrics metrics = load_metrics(counts);
    const double experts = static_cast<double>(counts.size());
    RC_ASSERT(metrics.max_vio >= -1e-12 && metrics.max_vio <= experts - 1.0 + 1e-9);
    RC_ASSERT(metrics.utilization >= 1.0 / experts - 1e-12 && metrics.utilization <= 1.0 + 1e-12);
    RC_ASSERT(metrics.entropy >= -1e-12 && metrics.entropy <= std::log(experts) + 1e-12);
    RC_ASSERT(metrics.variation <= std::sqrt(experts - 1.0) + 1e-9);
    Counts other = counts;
    std::reverse(other.begin(), other.end());
    for (int64_t& count : other) count *= 7;
    const LoadMetrics again = load_metrics(other);
    RC_ASSERT(std::abs(again.max_vio - metrics.max_vio) < 1e-9);
    RC_ASSERT(std::abs(again.utilization - metrics.utilization) < 1e-9);
    RC_ASSERT(again.dead_experts == metrics.dead_experts);
    RC_ASSERT(std::abs(again.entropy - metrics.entropy) < 1e-9);
    RC_ASSERT(std::abs(again.variation - metrics.variation) < 1e-9);
  }));
}

// Utilisation, dead experts and the rest from their textbook forms, by another route than the library's.
TEST(LoadMetrics, AgreeWithPlainFormulas) {
  EXPECT_TRUE(rc::check([] {
    const Counts counts = any_counts();
    const double experts = static_cast<double>(counts.size());
    const double total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    double largest = 0.0, used = 0.0, entropy = std::log(total), second = 0.0;
    for (const int64_t count : counts) {
      const double n = static_cast<double>(count);
      largest = std::max(largest, n);
      used += std::min(n / total, 1.0 / experts);
      if (count > 0) entropy -= n * std::log(n) / total;
      second += n * n / experts;
    }
    const double mean = total / experts;
    const LoadMetrics metrics = load_metrics(counts);
    RC_ASSERT(std::abs(metrics.max_vio - (largest - mean) / mean) < 1e-9);
    RC_ASSERT(std::abs(metrics.utilization - used) < 1e-9);
    RC_ASSERT(std::abs(metrics.entropy - entropy) < 1e-9);
    RC_ASSERT(std::abs(metrics.variation * metrics.variation - (second - mean * mean) / (mean * mean)) < 1e-6);
  }));
}

}  // namespace
}  // namespace switchyard
