#include "switchyard/kernels/adamw.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <utility>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/kernels/halves.hpp"

namespace switchyard {
namespace {

using testing::max_difference;
using testing::random_tensor;

AdamWFactors some_factors() {
  AdamWFactors factors;
  factors.gradient_scale = 0.3;
  factors.beta1 = 0.9;
  factors.beta2 = 0.95;
  factors.keep = 0.99;
  factors.rate = 0.02;
  factors.root_scale = 1.7;
  factors.epsilon = 1e-3;
  return factors;
}

AdamWTensors random_tensors(int64_t count, at::ScalarType type, at::ScalarType gradient_type) {
  return {random_tensor({count}, 1, type), at::Tensor(), random_tensor({count}, 3, type), random_tensor({count}, 4, type).abs(),
          {random_tensor({count}, 2, gradient_type)}};
}

AdamWTensors copy_of(const AdamWTensors& t) {
  return {t.weight.clone(), t.lower.defined() ? t.lower.clone() : t.lower, t.first.clone(), t.second.clone(), t.gradient_parts};
}

AdamWTensors with_half_moments(AdamWTensors t) {
  t.first = t.first.to(at::kBFloat16);
  t.second = t.second.to(at::kBFloat16);
  return t;
}

AdamWTensors in_halves(AdamWTensors t) {
  const at::Tensor whole = t.weight;
  t.weight = at::empty(whole.sizes(), at::kBFloat16);
  t.lower = at::empty(whole.sizes(), at::kShort);
  split_halves(whole, t.weight, t.lower);
  return t;
}

// In fp32 the fused pass rounds less often than the reference's operations.
void expect_same_update(const AdamWTensors& given, double tolerance) {
  const at::Tensor gradient = given.gradient_parts.front().clone();
  const AdamWTensors ours = copy_of(given), theirs = copy_of(given);
  adamw_update(ours, some_factors());
  adamw_update_reference(theirs, some_factors());
  EXPECT_LE(max_difference(ours.weight, theirs.weight), tolerance);
  EXPECT_LE(max_difference(ours.first, theirs.first), tolerance);
  EXPECT_LE(max_difference(ours.second, theirs.second), tolerance);
  EXPECT_EQ(max_difference(given.gradient_parts.front(), gradient), 0.0);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(AdamWUpdate);

// 1 - .99999 is off by .13 % where the fp32 beta is taken from 1.
TEST_P(AdamWUpdate, TakesWhatIsNewOfAMomentExactly) {
  AdamWFactors factors = some_factors();
  factors.gradient_scale = 1.0;
  factors.beta1 = factors.beta2 = 0.99999;
  const AdamWTensors t = {at::tensor({1.0}, at::kFloat), at::Tensor(), at::tensor({0.0}, at::kFloat), at::tensor({0.0}, at::kFloat),
                          {at::tensor({2.0}, at::kFloat)}};
  adamw_update(t, factors);
  EXPECT_NEAR(t.first.item<double>(), 2e-5, 2e-5 * 1e-6);
  EXPECT_NEAR(t.second.item<double>(), 4e-5, 4e-5 * 1e-6);
}

TEST_P(AdamWUpdate, MatchesHandWorkedNumbers) {
  // g = 2, m = .5 * 4 + .5 * 2 = 3, v = .75 * 4 + .25 * 4 = 4, w = .5 * 10 - 3 * 3 / (2 * 2 + 2) = 3.5
  const at::Tensor four = at::tensor({4.0}, at::kDouble);
  const AdamWTensors t = {at::tensor({10.0}, at::kDouble), at::Tensor(), four.clone(), four.clone(), {four}};
  adamw_update(
      t, {.gradient_scale = 0.5, .beta1 = 0.5, .beta2 = 0.75, .keep = 0.5, .rate = 3.0, .root_scale = 2.0, .epsilon = 2.0});
  EXPECT_EQ(t.first.item<double>(), 3.0);
  EXPECT_EQ(t.second.item<double>(), 4.0);
  EXPECT_EQ(t.weight.item<double>(), 3.5);
}

TEST_P(AdamWUpdate, EqualsItsReference) {
  for (const int64_t count : {1, 5, 37, 4096, 4097, 9001}) {
    expect_same_update(random_tensors(count, at::kDouble, at::kDouble), 1e-15);
    expect_same_update(random_tensors(count, at::kFloat, at::kFloat), 1e-6);
    expect_same_update(random_tensors(count, at::kFloat, at::kBFloat16), 1e-6);
  }
}

TEST_P(AdamWUpdate, RoundsMomentsOnlyToKeepThem) {
  for (const int64_t count : {1, 37, 9001}) {
    for (const at::ScalarType gradient : {at::kFloat, at::kBFloat16}) {
      const AdamWTensors given = random_tensors(count, at::kFloat, gradient);
      const AdamWTensors ours = copy_of(with_half_moments(given)), theirs = copy_of(with_half_moments(given));
      AdamWTensors full = copy_of(ours);  // the same moments in fp32
      full.first = full.first.to(at::kFloat);
      full.second = full.second.to(at::kFloat);
      adamw_update(ours, some_factors());
      adamw_update_reference(theirs, some_factors());
      adamw_update(full, some_factors());
      EXPECT_TRUE(at::equal(ours.weight, full.weight));
      EXPECT_TRUE(at::equal(ours.first, full.first.to(at::kBFloat16)));
      EXPECT_TRUE(at::equal(ours.second, full.second.to(at::kBFloat16)));
      EXPECT_LE(max_difference(ours.weight, theirs.weight), 1e-6);
      EXPECT_LE(max_difference(ours.second, theirs.second), 0.04);  // where the last bits decide, one unit of bf16 near 4
    }
  }
}

TEST_P(AdamWUpdate, MovesHalvesAsTheWhole) {
  for (const int64_t count : {1, 37, 9001}) {
    for (const at::ScalarType gradient : {at::kFloat, at::kBFloat16}) {
      const AdamWTensors given = random_tensors(count, at::kFloat, gradient);
      for (const AdamWTensors& start : {given, with_half_moments(given)}) {
        const AdamWTensors whole = copy_of(start), halves = copy_of(in_halves(start));
        for (int step = 0; step < 3; ++step) {
          adamw_update(whole, some_factors());
          adamw_update(halves, some_factors());
        }
        EXPECT_TRUE(at::equal(joined_halves(halves.weight, halves.lower), whole.weight));
        EXPECT_TRUE(at::equal(halves.second, whole.second));
      }
    }
  }
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(Halves);

TEST_P(Halves, ByHand) {
  // 1 + 2^-8 is the middle between 1 and the next bf16, 1 + 2^-7: it goes away from zero, what is above goes up, what is below down.
  const at::Tensor whole = at::tensor({1.0F + 0x1p-8F + 0x1p-23F, 1.0F + 0x1p-8F, 1.0F + 0x1p-8F - 0x1p-23F, -1.0F - 0x1p-8F, 0.0F});
  const at::Tensor upper = at::empty({5}, at::kBFloat16), lower = at::empty({5}, at::kShort);
  split_halves(whole, upper, lower);
  EXPECT_TRUE(at::equal(upper.to(at::kFloat), at::tensor({1.0F + 0x1p-7F, 1.0F + 0x1p-7F, 1.0F, -1.0F - 0x1p-7F, 0.0F})));
  EXPECT_TRUE(at::equal(lower, at::tensor({-32767, -32768, 32767, -32768, 0}, at::kShort)));
  EXPECT_TRUE(at::equal(joined_halves(upper, lower), whole));
}

TEST_P(Halves, AreTheWholeToTheBitAndItsNearestBFloat16) {
  for (const int64_t count : {0, 1, 37, 100003}) {
    // Of all sizes, the largest and the smallest among them.
    const at::Tensor whole = random_tensor({count}, 1, at::kFloat).mul(random_tensor({count}, 2, at::kFloat).mul(20.0).exp2());
    const at::Tensor upper = at::empty({count}, at::kBFloat16), lower = at::empty({count}, at::kShort);
    split_halves(whole, upper, lower);
    EXPECT_TRUE(at::equal(joined_halves(upper, lower), whole));
    EXPECT_TRUE(at::equal(joined_halves_reference(upper, lower), whole));
    const at::Tensor plain_upper = at::empty({count}, at::kBFloat16), plain_lower = at::empty({count}, at::kShort);
    split_halves_reference(whole, plain_upper, plain_lower);
    EXPECT_TRUE(at::equal(plain_upper, upper) && at::equal(plain_lower, lower));
    const at::Tensor rounded = whole.to(at::kBFloat16);
    EXPECT_LE(rounded.ne(upper).sum().item<int64_t>(), 20);  // ties, 1 in 65,536 of which half go the other way
    EXPECT_TRUE(upper.to(at::kFloat).sub(whole).abs().le(rounded.to(at::kFloat).sub(whole).abs()).all().item<bool>());
  }
  const at::Tensor four = at::empty({4}, at::kBFloat16);
  EXPECT_THROW(split_halves(at::empty({3}, at::kFloat), four, at::empty({4}, at::kShort)), ShapeError);
  EXPECT_THROW((void)joined_halves(four, four), ShapeError);
}

// Of a gradient in parts the sum counts, with the bits it has when it is taken first: three blocks, the last one odd.
TEST_P(AdamWUpdate, AddsUpPartsOfTheGradient) {
  constexpr int64_t kCount = 2 * 4096 + 17;
  for (const auto& [weights, parts] : {std::pair(at::kFloat, at::kBFloat16), std::pair(at::kFloat, at::kFloat),
                                       std::pair(at::kDouble, at::kDouble)}) {
    AdamWTensors given = random_tensors(kCount, weights, parts);
    for (const int64_t seed : {7, 8}) given.gradient_parts.push_back(random_tensor({kCount}, static_cast<uint64_t>(seed), parts));
    AdamWTensors summed = copy_of(given);
    summed.gradient_parts = {wide_sum(given.gradient_parts)};
    expect_same_update(given, weights == at::kDouble ? 1e-12 : 1e-6);
    const AdamWTensors ours = copy_of(given);
    adamw_update(ours, some_factors());
    adamw_update(summed, some_factors());
    EXPECT_TRUE(at::equal(ours.weight, summed.weight) && at::equal(ours.first, summed.first) && at::equal(ours.second, summed.second));
    EXPECT_EQ(sum_of_squares(given.gradient_parts), sum_of_squares(summed.gradient_parts));
  }
}

TEST_P(AdamWUpdate, RefusesTensorsThatDoNotFit) {
  const AdamWTensors good = random_tensors(4, at::kFloat, at::kBFloat16);
  const auto run = [](AdamWTensors t) { adamw_update(t, some_factors()); };
  EXPECT_NO_THROW(run(good));
  AdamWTensors bad = good;
  bad.gradient_parts = {random_tensor({4}, 1, at::kDouble)};
  EXPECT_THROW(run(bad), ShapeError);
  bad.gradient_parts = {};
  EXPECT_THROW(run(bad), ShapeError);
  bad.gradient_parts = {good.gradient_parts[0], random_tensor({4}, 1, at::kFloat)};  // of another type
  EXPECT_THROW(run(bad), ShapeError);
  bad = good;
  bad.first = random_tensor({3}, 1, at::kFloat);
  EXPECT_THROW(run(bad), ShapeError);
  bad = good;
  bad.first = bad.first.to(at::kBFloat16);  // one of two
  EXPECT_THROW(run(bad), ShapeError);
  EXPECT_THROW(run(with_half_moments(random_tensors(4, at::kDouble, at::kDouble))), ShapeError);
  bad = in_halves(good);
  EXPECT_NO_THROW(run(bad));
  bad.lower = random_tensor({4}, 1, at::kFloat);
  EXPECT_THROW(run(bad), ShapeError);
  bad = good;
  bad.weight = random_tensor({4}, 1, at::kBFloat16);
  EXPECT_THROW(run(bad), ShapeError);
}

TEST(WideSum, AddsPartsInTheirOrder) {
  const std::vector<at::Tensor> parts = {random_tensor({41, 501}, 1, at::kBFloat16), random_tensor({41, 501}, 2, at::kBFloat16),
                                         random_tensor({41, 501}, 3, at::kBFloat16)};
  const at::Tensor expected = parts[0].to(at::kFloat).add(parts[1].to(at::kFloat)).add(parts[2].to(at::kFloat));
  EXPECT_EQ(wide_sum(parts).scalar_type(), at::kFloat);
  EXPECT_EQ(max_difference(wide_sum(parts), expected), 0.0);
  EXPECT_EQ(max_difference(wide_sum({parts[2]}), parts[2].to(at::kFloat)), 0.0);
  // 2^24 + 1 + 1: from the left both ones are lost, so the order shows.
  const auto number = [](double value) { return at::full({1}, value, at::kFloat); };
  EXPECT_EQ(wide_sum({number(0x1p24), number(1), number(1)}).item<double>(), 0x1p24);
  EXPECT_EQ(wide_sum({number(1), number(1), number(0x1p24)}).item<double>(), 0x1p24 + 2);
  EXPECT_THROW((void)wide_sum({}), ShapeError);
  EXPECT_THROW((void)wide_sum({parts[0], parts[1].to(at::kFloat)}), ShapeError);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(SumOfSquares);

TEST_P(SumOfSquares, OfAnyLengthAndType) {
  const double tolerance = 4e-6;  // each lane of a vector adds up its share in fp32: of 4097 numbers 1024 with four lanes
  for (const int64_t count : {0, 1, 17, 4097, 50000}) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
      const at::Tensor values = random_tensor({count}, 1, type);
      const double expected = values.to(at::kDouble).square().sum().item<double>();
      EXPECT_NEAR(sum_of_squares({values}), expected, tolerance * expected) << count << " " << type;
    }
  }
  // Added up in fp32 alone, the small squares of all blocks would be lost behind a large one, not only those of its block.
  const at::Tensor values = at::full({1 << 21}, 1.0, at::kFloat);
  values[0] = 8192.0;
  EXPECT_NEAR(sum_of_squares({values}), 8192.0 * 8192.0 + (1 << 21), 4096.0);
}

}  // namespace
}  // namespace switchyard
