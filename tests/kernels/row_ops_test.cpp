#include "switchyard/kernels/row_ops.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/instruction_sets.hpp"

namespace switchyard {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

SWITCHYARD_ON_EACH_INSTRUCTION_SET(RowLoops);

// In whole vectors and in the rest of a row. Below the smallest normal number an instruction that rounds may give 0.
TEST_P(RowLoops, StoreRoundsToNearestEvenAsTorchDoes) {
  const std::vector<float> some = {1.0F, 1.00390625F, 1.01171875F, -1.00390625F, 3.4e38F, kInfinity, -kInfinity, 1.2e-38F, -0.0F, 0.1F,
                                   -3.0e-3F};
  std::vector<float> values;
  for (int i = 0; i < 7; ++i) values.insert(values.end(), some.begin(), some.end());
  values.insert(values.end(), {1e-40F, kNan});
  std::vector<c10::BFloat16> stored(values.size());
  row_ops<c10::BFloat16>().store(values.data(), stored.data(), static_cast<int64_t>(values.size()));
  for (size_t i = 0; i + 2 < values.size(); ++i) EXPECT_EQ(stored[i].x, c10::BFloat16(values[i]).x) << values[i];
  EXPECT_NEAR(static_cast<float>(stored[values.size() - 2]), 1e-40F, 1e-40F);
  EXPECT_TRUE(std::isnan(static_cast<float>(stored.back())));
}

// Rows of every length around the vector sizes; what lies behind a row is not touched.
TEST_P(RowLoops, SoftmaxOfAnyLengthSumsToOneAndStaysInItsRow) {
  for (int64_t width = 1; width <= 70; ++width) {
    std::vector<double> row(static_cast<size_t>(width) + 1, 0.0);
    for (int64_t i = 0; i < width; ++i) row[static_cast<size_t>(i)] = std::sin(static_cast<double>(3 * i));
    row.back() = 123.0;
    const std::vector<double> scores = row;
    const int64_t visible = (width + 1) / 2;
    std::vector<double> scratch(static_cast<size_t>(visible) + 1, 321.0);
    row_ops<double>().softmax(row.data(), scratch.data(), visible, width);
    EXPECT_EQ(scratch.back(), 321.0);
    double normalizer = 0.0;
    for (int64_t i = 0; i < visible; ++i) normalizer += std::exp(scores[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(i);
      EXPECT_NEAR(row[at], i < visible ? std::exp(scores[at]) / normalizer : 0.0, 1e-14) << width << " " << i;
    }
    EXPECT_EQ(row.back(), 123.0);
  }
}

TEST_P(RowLoops, CrossEntropyOfAnyLength) {
  for (int64_t width = 1; width <= 70; ++width) {
    std::vector<float> logits(static_cast<size_t>(width));
    double normalizer = 0.0;
    for (int64_t i = 0; i < width; ++i) {
      logits[static_cast<size_t>(i)] = static_cast<float>(5.0 * std::cos(static_cast<double>(i)));
      normalizer += std::exp(static_cast<double>(logits[static_cast<size_t>(i)]));
    }
    const int64_t target = width / 2;
    const std::vector<float> given = logits;
    const double expected = std::log(normalizer) - static_cast<double>(given[static_cast<size_t>(target)]);
    EXPECT_NEAR(row_ops<float>().cross_entropy(logits.data(), width, target), expected, 1e-5);
    std::vector<float> scratch(static_cast<size_t>(width) + 1, 321.0F);
    EXPECT_NEAR(row_ops<float>().cross_entropy_gradient(logits.data(), scratch.data(), width, target), expected, 1e-5);
    EXPECT_EQ(scratch.back(), 321.0F);
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(i);
      const double probability = std::exp(static_cast<double>(given[at])) / normalizer;
      EXPECT_NEAR(logits[at], probability - (i == target ? 1.0 : 0.0), 1e-6);
    }
  }
}

// As of a token that the model is sure of. Added to the target's 1 each of the others would be rounded away.
TEST_P(RowLoops, CrossEntropyOfASureTokenCountsAllOthers) {
  constexpr int64_t kWidth = 151936, kTarget = 7;
  for (const float gap : {-16.7F, -18.0F, -20.0F}) {
    std::vector<float> logits(kWidth, gap), scratch(kWidth);
    logits[kTarget] = 0.0F;
    const std::vector<float> given = logits;
    const double others = (kWidth - 1) * std::exp(static_cast<double>(gap));
    const double expected = std::log1p(others);
    EXPECT_NEAR(row_ops<float>().cross_entropy(logits.data(), kWidth, kTarget), expected, 1e-4 * expected);
    EXPECT_EQ(logits, given);
    EXPECT_NEAR(row_ops<float>().cross_entropy_gradient(logits.data(), scratch.data(), kWidth, kTarget), expected, 1e-4 * expected);
    EXPECT_NEAR(logits[kTarget], -others / (1.0 + others), 1e-4 * others);
  }
}

// Another token has the 1 here; what the others add is small beside it, not beside nothing.
TEST_P(RowLoops, CrossEntropyOfAMistakenTokenCountsAllOthers) {
  constexpr int64_t kWidth = 151936;
  std::vector<float> logits(kWidth, -16.7F);
  logits[3] = 0.0F;
  const double expected = std::log1p((kWidth - 1) * std::exp(-16.7)) + 16.7;
  EXPECT_NEAR(row_ops<float>().cross_entropy(logits.data(), kWidth, 7), expected, 1e-5 * expected);
  std::vector<float> scratch(kWidth);
  row_ops<float>().softmax(logits.data(), scratch.data(), kWidth, kWidth);
  EXPECT_NEAR(logits[3], 1.0 / (1.0 + (kWidth - 1) * std::exp(-16.7)), 2e-4);
}

// A run that diverges must show it: NaN may not turn into a plausible number.
TEST_P(RowLoops, NanAndInfinityStayVisible) {
  for (const float bad : {kNan, kInfinity}) {
    for (const size_t place : {size_t{0}, size_t{18}}) {
      std::vector<float> row(20, 0.5F);
      row[place] = bad;
      std::vector<float> probs = row;
      std::vector<float> scratch(20);
      row_ops<float>().softmax(probs.data(), scratch.data(), 20, 20);
      EXPECT_TRUE(std::isnan(probs[5])) << bad;
      EXPECT_FALSE(std::isfinite(row_ops<float>().cross_entropy(row.data(), 20, 3))) << bad;
      std::vector<float> out(20);
      const std::vector<float> weight(20, 1.0F);
      row_ops<float>().rms_norm(row.data(), weight.data(), out.data(), 20, 1e-6F);
      EXPECT_TRUE(std::isnan(out[place])) << bad;
      std::vector<float> gated(10);
      row_ops<float>().swiglu(row.data(), gated.data(), 10);
      EXPECT_FALSE(std::isfinite(gated[place % 10])) << bad;
    }
  }
}

}  // namespace
}  // namespace switchyard
