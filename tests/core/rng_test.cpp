#include "switchyard/core/rng.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <set>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

TEST(Rng, IsPhilox2x64) {
  // Known answers of Random123 (kat_vectors, philox2x64 10): counter and key zero.
  Rng zero = Rng::from_state({.key = 0, .counter = 0});
  EXPECT_EQ(zero.next(), 0xca00a0459843d731U);
  zero = Rng::from_state({.key = 0, .counter = 0});
  const double radius = std::sqrt(-2.0 * std::log(std::ldexp(0xca00a0459843d731p0, -64)));
  EXPECT_NEAR(zero.normal(), radius * std::cos(2.0 * std::numbers::pi * std::ldexp(0x66c24222c9a845b5p0, -64)), 1e-12);
}

TEST(Rng, IsTheSameOnEveryMachine) {
  EXPECT_EQ(hash_words({}), 16852473371444490038U);
  EXPECT_EQ(hash_words({1, 2}), 13578544061353772793U);
  EXPECT_EQ(hash_text("router"), 197909244693564923U);
  Rng rng(7, "init", {3});
  EXPECT_EQ(rng.next(), 17785228142835650287U);
}

TEST(Hash, DependsOnEachWordOrderAndLength) {
  const std::set<uint64_t> hashes = {hash_words({}),     hash_words({0}),    hash_words({0, 0}), hash_words({1}),
                                     hash_words({1, 0}), hash_words({0, 1}), hash_words({1, 2}), hash_words({2, 1})};
  EXPECT_EQ(hashes.size(), 8U);
  const std::set<uint64_t> names = {hash_text(""),         hash_text("a"),           hash_text("b"),
                                    hash_text("ab"),       hash_text("ba"),          hash_text("12345678"),
                                    hash_text("12345679"), hash_text("12345678\1"), hash_text(std::string_view("a\0", 2))};
  EXPECT_EQ(names.size(), 9U);
}

TEST(Rng, StreamsSeedsAndIndicesDiffer) {
  std::set<uint64_t> firsts;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (const char* stream : {"init", "data", "router"}) {
      firsts.insert(Rng(seed, stream).next());
      for (uint64_t index = 0; index < 10; ++index) firsts.insert(Rng(seed, stream, {index}).next());
    }
  }
  EXPECT_EQ(firsts.size(), 10U * 3U * 11U);
}

TEST(Rng, ContinuesFromItsState) {
  Rng rng(1, "data");
  (void)rng.normal();
  (void)rng.normal_tensor({5}, 1.0);
  (void)rng.below(10);
  Rng resumed = Rng::from_state(rng.state());
  EXPECT_EQ(resumed.state(), rng.state());
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(resumed.next(), rng.next());
    EXPECT_EQ(resumed.normal(), rng.normal());
    EXPECT_EQ(resumed.uniform(), rng.uniform());
    EXPECT_EQ(resumed.below(7), rng.below(7));
  }
}

TEST(Rng, UniformFillsItsIntervalEvenly) {
  constexpr int kDraws = 160000;
  constexpr int kBins = 16;
  std::vector<int> bins(kBins);
  Rng rng(2, "uniform");
  for (int i = 0; i < kDraws; ++i) {
    const double value = rng.uniform();
    ASSERT_GE(value, 0.0);
    ASSERT_LT(value, 1.0);
    ++bins[static_cast<size_t>(value * kBins)];
  }
  double chi_square = 0.0;
  for (const int count : bins) chi_square += std::pow(count - kDraws / kBins, 2) / (kDraws / kBins);
  EXPECT_LT(chi_square, 37.7);  // 0.1 % quantile of 15 degrees of freedom
}

TEST(Rng, NormalHasTheMomentsOfTheNormal) {
  constexpr int64_t kDraws = 200000;
  const at::Tensor values = Rng(3, "normal").normal_tensor({kDraws}, 2.0);
  const float* data = values.const_data_ptr<float>();
  double sums[4] = {};
  double neighbours = 0.0;
  for (int64_t i = 0; i < kDraws; ++i) {
    const double value = data[i] / 2.0;
    for (int power = 0; power < 4; ++power) sums[power] += std::pow(value, power + 1) / kDraws;
    if (i > 0) neighbours += value * data[i - 1] / 2.0 / kDraws;
  }
  EXPECT_NEAR(sums[0], 0.0, 0.01);
  EXPECT_NEAR(sums[1], 1.0, 0.015);
  EXPECT_NEAR(sums[2], 0.0, 0.04);
  EXPECT_NEAR(sums[3], 3.0, 0.12);
  EXPECT_NEAR(neighbours, 0.0, 0.01);
}

TEST(Rng, NormalTensorHasTheSameBitsForAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor one = Rng(4, "init").normal_tensor({33, 7}, 0.02);
  at::set_num_threads(2);
  const at::Tensor two = Rng(4, "init").normal_tensor({33, 7}, 0.02);
  at::set_num_threads(before);
  EXPECT_EQ(one.sizes(), (std::vector<int64_t>{33, 7}));
  EXPECT_EQ(one.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(one, two));
}

// Against the textbook formula in double with the C library's functions, which normal() uses. Both are within a few units in
// the last place of double, so after rounding to fp32 a difference is rare, and one unit.
TEST(Rng, NormalTensorHasTheNumbersOfNormal) {
  constexpr int64_t kPairs = 100003;  // no multiple of a vector or of a block
  const at::Tensor values = Rng(8, "init").normal_tensor({2 * kPairs - 1}, 0.02);
  const float* data = values.const_data_ptr<float>();
  Rng rng(8, "init");
  int64_t num_different = 0;
  for (int64_t pair = 0; pair < kPairs; ++pair) {
    const auto expected = static_cast<float>(0.02 * rng.normal());
    const float found = data[2 * pair];
    num_different += found != expected ? 1 : 0;
    ASSERT_NEAR(found, expected, 1e-7 * std::abs(expected)) << pair;
  }
  EXPECT_LE(num_different, 2);
}

TEST(Rng, FillNormalRefusesGapsAndOtherTypes) {
  Rng rng(9, "init");
  EXPECT_THROW(rng.fill_normal(at::zeros({4, 4}).t().narrow(0, 1, 2), 1.0), ShapeError);
  EXPECT_THROW(rng.fill_normal(at::zeros({4}, at::kDouble), 1.0), ShapeError);
}

TEST(Rng, NormalTensorTakesAnySize) {
  Rng rng(5, "init");
  EXPECT_EQ(rng.normal_tensor({0}, 1.0).numel(), 0);
  EXPECT_EQ(rng.normal_tensor({1}, 1.0).numel(), 1);
  EXPECT_EQ(rng.normal_tensor({}, 1.0).dim(), 0);
  EXPECT_EQ(rng.state().counter, 2U);
}

TEST(Rng, BelowIsUnbiasedAndInRange) {
  constexpr int kDraws = 60000;
  std::vector<int> counts(6);
  Rng rng(6, "below");
  for (int i = 0; i < kDraws; ++i) ++counts.at(rng.below(6));
  double chi_square = 0.0;
  for (const int count : counts) chi_square += std::pow(count - kDraws / 6, 2) / (kDraws / 6);
  EXPECT_LT(chi_square, 20.5);  // 0.1 % quantile of 5 degrees of freedom
  EXPECT_EQ(rng.below(1), 0U);
}

TEST(Rng, BelowIsUnbiasedWhereTheRangeDoesNotDivide) {
  // Of this range a third of the low words must be refused; without that the upper half would come up half as often.
  constexpr uint64_t kEnd = 3U * (uint64_t{1} << 62);
  constexpr int kDraws = 30000;
  Rng rng(7, "below");
  int upper_third = 0;
  for (int i = 0; i < kDraws; ++i) {
    const uint64_t value = rng.below(kEnd);
    ASSERT_LT(value, kEnd);
    upper_third += value >= 2U * (uint64_t{1} << 62) ? 1 : 0;
  }
  EXPECT_NEAR(upper_third / static_cast<double>(kDraws), 1.0 / 3.0, 0.01);
  EXPECT_THROW((void)rng.below(0), UsageError);
}

}  // namespace
}  // namespace switchyard
