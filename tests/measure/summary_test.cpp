#include "switchyard/measure/summary.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using Values = std::vector<double>;

// The usual table of Student's t (three decimals), e.g. NIST/SEMATECH e-Handbook 1.3.6.7.2.
TEST(StudentT, QuantilesMatchTheTable) {
  struct Row {
    double degrees, p95, p975, p995;
  };
  for (const Row& row : {Row{1, 6.314, 12.706, 63.657}, Row{2, 2.920, 4.303, 9.925}, Row{3, 2.353, 3.182, 5.841},
                         Row{4, 2.132, 2.776, 4.604}, Row{5, 2.015, 2.571, 4.032}, Row{10, 1.812, 2.228, 3.169},
                         Row{30, 1.697, 2.042, 2.750}, Row{100, 1.660, 1.984, 2.626}}) {
    EXPECT_NEAR(student_t_quantile(0.95, row.degrees), row.p95, 5.1e-4) << row.degrees;
    EXPECT_NEAR(student_t_quantile(0.975, row.degrees), row.p975, 5.1e-4) << row.degrees;
    EXPECT_NEAR(student_t_quantile(0.995, row.degrees), row.p995, 5.1e-4) << row.degrees;
  }
}

// One and two degrees have closed forms: tan(pi (p - 1/2)) and a / sqrt(2 p (1 - p)) with a = 2 p - 1.
TEST(StudentT, QuantilesMatchTheClosedForms) {
  for (const double p : {1e-6, 0.01, 0.3, 0.5, 0.75, 0.975, 0.9999}) {
    const double one = std::tan(std::numbers::pi * (p - 0.5));
    const double two = (2.0 * p - 1.0) / std::sqrt(2.0 * p * (1.0 - p));
    EXPECT_NEAR(student_t_quantile(p, 1.0), one, 1e-9 * (1.0 + std::abs(one))) << p;
    EXPECT_NEAR(student_t_quantile(p, 2.0), two, 1e-9 * (1.0 + std::abs(two))) << p;
  }
}

TEST(StudentT, NearsTheNormalDistribution) {
  EXPECT_NEAR(student_t_quantile(0.975, 1e6), 1.959966, 2e-6);
  EXPECT_NEAR(student_t_probability(1.0, 1e6), 0.5 * std::erfc(-1.0 / std::numbers::sqrt2), 1e-6);
}

TEST(StudentT, QuantileInvertsProbability) {
  for (const double degrees : {1.0, 2.5, 7.0, 40.0}) {
    for (const double t : {-30.0, -2.0, -0.01, 0.5, 3.0}) {
      EXPECT_NEAR(student_t_quantile(student_t_probability(t, degrees), degrees), t, 1e-8 * (1.0 + std::abs(t)));
    }
    EXPECT_EQ(student_t_quantile(0.5, degrees), 0.0);
    EXPECT_DOUBLE_EQ(student_t_probability(0.0, degrees), 0.5);
  }
}

TEST(StudentT, RefusesWhatHasNoQuantile) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW((void)student_t_quantile(0.0, 3.0), UsageError);
  EXPECT_THROW((void)student_t_quantile(1.0, 3.0), UsageError);
  EXPECT_THROW((void)student_t_quantile(nan, 3.0), UsageError);
  EXPECT_THROW((void)student_t_quantile(0.5, 0.0), UsageError);
  EXPECT_THROW((void)student_t_probability(1.0, nan), UsageError);
}

// The three paired differences of testbed_science.md section A: S of optimizer_batch minus S of micro_batch.
TEST(Summary, GivesTheIntervalOfPairedDifferences) {
  const Summary summary = summarize_differences(Values{.393, .444, .419}, Values{.035, .044, .034});
  EXPECT_EQ(summary.count, 3);
  EXPECT_NEAR(summary.mean, .381, 5e-4);  // of .358, .400, .385
  ASSERT_TRUE(summary.deviation && summary.interval);
  EXPECT_NEAR(*summary.deviation, std::sqrt((.023 * .023 + .019 * .019 + .004 * .004) / 2.0), 1e-9);
  EXPECT_NEAR(summary.interval->upper - summary.mean, 4.30265 * *summary.deviation / std::sqrt(3.0), 1e-6);
  EXPECT_NEAR(summary.interval->lower, .33, 5e-3);
  EXPECT_NEAR(summary.interval->upper, .43, 5e-3);
}

TEST(Summary, OfOneValueHasNoInterval) {
  const Summary summary = summarize(Values{2.5});
  EXPECT_EQ(summary.count, 1);
  EXPECT_EQ(summary.mean, 2.5);
  EXPECT_FALSE(summary.deviation.has_value());
  EXPECT_FALSE(summary.interval.has_value());
}

TEST(Summary, OfEqualValuesIsExact) {
  const Summary summary = summarize(Values{0.1, 0.1, 0.1});
  EXPECT_EQ(summary.mean, 0.1);
  EXPECT_EQ(*summary.deviation, 0.0);
  EXPECT_EQ(summary.interval->lower, 0.1);
}

TEST(Summary, KeepsDigitsOfLargeValues) {
  const Summary summary = summarize(Values{1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0});
  EXPECT_EQ(summary.mean, 1e9 + 2.0);
  EXPECT_DOUBLE_EQ(*summary.deviation, 1.0);
}

TEST(Summary, OfADivergedRunHasNoMean) {
  const Summary summary = summarize(Values{1.0, std::numeric_limits<double>::infinity(), 2.0});
  EXPECT_EQ(summary.count, 3);
  EXPECT_TRUE(std::isnan(summary.mean));
  EXPECT_FALSE(summary.deviation.has_value());
  EXPECT_FALSE(summary.interval.has_value());
  EXPECT_TRUE(std::isnan(summarize({}).mean));
  EXPECT_EQ(summarize({}).count, 0);
}

TEST(Summary, WidensWithConfidence) {
  const Values values = {1.0, 2.0, 4.0};
  const Interval narrow = *summarize(values, 0.5).interval;
  const Interval wide = *summarize(values, 0.99).interval;
  EXPECT_LT(wide.lower, narrow.lower);
  EXPECT_GT(wide.upper, narrow.upper);
}

TEST(Summary, RefusesBadInput) {
  EXPECT_THROW((void)summarize(Values{1.0}, 1.0), UsageError);
  EXPECT_THROW((void)summarize(Values{1.0}, 95.0), UsageError);
  EXPECT_THROW((void)summarize_differences(Values{1.0}, Values{1.0, 2.0}), UsageError);
}

}  // namespace
}  // namespace switchyard
