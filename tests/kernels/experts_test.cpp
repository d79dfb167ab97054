#include "switchyard/kernels/experts.hpp"

#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/grouped_gemm.hpp"
#include "switchyard/kernels/tile_experts.hpp"
#include "switchyard/kernels/tile_product.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using testing::expect_close_in;
using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

struct Case {
  int64_t num_tokens, width, expert_width;
  std::vector<int64_t> tokens;       // of each slot
  std::vector<int64_t> expert_size;  // slots of each expert
};

at::Tensor offsets_of(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> offsets(sizes.size() + 1, 0);
  std::partial_sum(sizes.begin(), sizes.end(), offsets.begin() + 1);
  return at::tensor(offsets, at::kLong);
}

std::vector<at::Tensor> random_inputs(const Case& c, at::ScalarType type = at::kDouble) {
  const auto experts = static_cast<int64_t>(c.expert_size.size());
  const at::ScalarType wide = type == at::kBFloat16 ? at::kFloat : type;
  return {random_tensor({c.num_tokens, c.width}, 1, type), random_tensor({experts, 2 * c.expert_width, c.width}, 2, type),
          random_tensor({experts, c.width, c.expert_width}, 3, type),
          random_tensor({static_cast<int64_t>(c.tokens.size())}, 4, wide)};
}

void expect_case(const Case& c, double tolerance) {
  const at::Tensor token_A = at::tensor(c.tokens, at::kLong);
  const at::Tensor offsets_E = offsets_of(c.expert_size);
  const auto run = [&](const auto& function, const auto& in) {
    return function(in[0], in[1], in[2], ExpertSlots{token_A, in[3], offsets_E});
  };
  expect_same_function([&](const auto& in) { return run(grouped_experts, in); },
                       [&](const auto& in) { return run(grouped_experts_reference, in); }, random_inputs(c), tolerance);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(GroupedExperts);

TEST_P(GroupedExperts, MatchesAHandWorkedToken) {
  // silu(ln 3) = 3/4 ln 3; expert 0: up 2, down 4; expert 1: gate 0. Weights 1/2 and 1/2.
  const at::Tensor hidden = at::ones({1, 1}, at::kDouble);
  const at::Tensor gate_up = at::tensor({std::log(3.0), 2.0, 0.0, 2.0}, at::kDouble).reshape({2, 2, 1});
  const at::Tensor down = at::tensor({4.0, 7.0}, at::kDouble).reshape({2, 1, 1});
  const ExpertSlots slots{at::tensor({0, 0}, at::kLong), at::tensor({0.5, 0.5}, at::kDouble), at::tensor({0, 1, 2}, at::kLong)};
  EXPECT_NEAR(grouped_experts(hidden, gate_up, down, slots).item<double>(), 0.5 * 4.0 * 2.0 * 0.75 * std::log(3.0), 1e-12);
}

TEST_P(GroupedExperts, EqualsItsReferenceInValueAndGradient) {
  expect_case({1, 3, 2, {0}, {1}}, 1e-11);                                   // one token, one expert
  expect_case({3, 5, 7, {0, 2, 1, 0, 1, 2}, {2, 0, 1, 3, 0}}, 1e-10);        // empty experts, last one too
  expect_case({4, 2, 3, {3, 3}, {0, 2}}, 1e-11);                             // tokens without slots
  expect_case({2, 2, 2, {}, {0, 0}}, 0.0);                                   // nothing routed
}

TEST_P(GroupedExperts, EqualsItsReferenceForAnyRouting) {
  EXPECT_TRUE(rc::check([] {
    const auto num_tokens = *rc::gen::inRange<int64_t>(1, 20);
    const auto num_experts = *rc::gen::inRange<int64_t>(1, 6);
    Case c{num_tokens, *rc::gen::inRange<int64_t>(1, 9), *rc::gen::inRange<int64_t>(1, 9), {}, {}};
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      const auto chosen = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, num_tokens));
      c.expert_size.push_back(static_cast<int64_t>(chosen.size()));
      c.tokens.insert(c.tokens.end(), chosen.begin(), chosen.end());
    }
    expect_case(c, 1e-9);
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

// By tiles where the processor has them (bf16: and both widths are even), by ATen's products otherwise. Groups of none and one
// slot, of a unit of rows and one more, beyond one chunk; widths beyond one panel, no multiple of a tile, of 1,024, whose rows
// fp32 panels do not leave where they are, and of weights beyond the cache, with more numbers than the rows (251) and with fewer.
void expect_close_experts(at::ScalarType type, double tolerance) {
  for (const auto& [width, expert_width] : {std::pair<int64_t, int64_t>{2, 2}, {32, 16}, {5, 7}, {70, 38}, {150, 136}, {1024, 8}, {700, 262}}) {
    SCOPED_TRACE(::testing::Message() << type << ", width " << width << ", expert width " << expert_width);
    Case c{300, width, expert_width, {}, {0, 1, 32, 33, 300, 0, 7}};
    for (const int64_t size : c.expert_size) {
      for (int64_t i = 0; i < size; ++i) c.tokens.push_back((7 * i + size) % 300);
    }
    std::vector<at::Tensor> in = random_inputs(c);
    for (const size_t weight : {1U, 2U}) in[weight].div_(std::sqrt(static_cast<double>(width)));
    const at::Tensor token_A = at::tensor(c.tokens, at::kLong), offsets_E = offsets_of(c.expert_size);
    const auto run = [&](const auto& function, const auto& given) {
      const at::ScalarType wide = wide_type(given[0].scalar_type());
      return function(given[0], given[1], given[2], ExpertSlots{token_A, given[3].to(wide), offsets_E});
    };
    expect_close_in(type, [&](const auto& given) { return run(grouped_experts, given); },
                    [&](const auto& given) { return run(grouped_experts_reference, given); }, in, tolerance);
  }
}

// Odd widths cannot be paired; fp32 ones need not be.
TEST_P(GroupedExperts, GoByTilesWhereTheyAre) {
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const int64_t width : {4, 5}) {
      const std::vector<at::Tensor> in = random_inputs({1, width, 2, {0}, {1}}, type);
      EXPECT_EQ(has_tile_experts(in[0], in[2]), has_tile_products(type) && (type == at::kFloat || width == 4)) << type << " " << width;
    }
  }
}

TEST_P(GroupedExperts, IsCloseInBfloat16) { expect_close_experts(at::kBFloat16, 0.015); }
TEST_P(GroupedExperts, IsCloseInFloat32) { expect_close_experts(at::kFloat, 2e-6); }

// Costs are the slots and 32 where a group has any, else 1: 42, 132, 1, 52, 232 -> 232 and 132 first, then 52 and 42 beside the 132.
TEST(DealGroups, GivesTheLargestFirstToTheTaskThatHasLeast) {
  const std::vector<int64_t> offsets = {0, 10, 110, 110, 130, 330};
  EXPECT_EQ(deal_groups(offsets, 2), (std::vector<int64_t>{1, 1, 1, 1, 0}));
  EXPECT_EQ(deal_groups(offsets, 1), (std::vector<int64_t>{0, 0, 0, 0, 0}));
  EXPECT_EQ(deal_groups(offsets, 8), (std::vector<int64_t>{3, 1, 4, 2, 0}));
}

// No task has more than the mean and one whole group (Graham's bound for dealing in any order), and no group is left out.
TEST(DealGroups, LeavesNoTaskFarBehind) {
  EXPECT_TRUE(rc::check([](const std::vector<uint16_t>& sizes) {
    RC_PRE(!sizes.empty());
    const auto num_tasks = *rc::gen::inRange<int64_t>(1, 9);
    std::vector<int64_t> offsets = {0}, done(static_cast<size_t>(num_tasks), 0);
    for (const uint16_t size : sizes) offsets.push_back(offsets.back() + size);
    const std::vector<int64_t> task_E = deal_groups(offsets, num_tasks);
    RC_ASSERT(task_E.size() == sizes.size());
    int64_t sum = 0, largest = 0;
    for (size_t group = 0; group < sizes.size(); ++group) {
      RC_ASSERT(task_E[group] >= 0 && task_E[group] < num_tasks);
      const int64_t cost = sizes[group] == 0 ? 1 : sizes[group] + 32;
      done[static_cast<size_t>(task_E[group])] += cost;
      sum += cost;
      largest = std::max(largest, cost);
    }
    RC_ASSERT(*std::ranges::max_element(done) <= sum / num_tasks + largest);
  }));
}

TEST_P(GroupedExperts, LeavesOutGradientsOfFrozenWeights) {
  const std::vector<at::Tensor> in = random_inputs({2, 3, 2, {0, 1}, {1, 1}});
  in[0].set_requires_grad(true);
  const ExpertSlots slots{at::tensor({0, 1}, at::kLong), in[3], at::tensor({0, 1, 2}, at::kLong)};
  grouped_experts(in[0], in[1], in[2], slots).sum().backward();
  EXPECT_TRUE(in[0].grad().defined());
  EXPECT_FALSE(in[1].grad().defined());
  EXPECT_FALSE(in[3].grad().defined());
}

TEST_P(GroupedExperts, RejectsSlotsThatDoNotFit) {
  const std::vector<at::Tensor> in = random_inputs({2, 3, 2, {0, 1}, {1, 1}});
  const at::Tensor tokens = at::tensor({0, 1}, at::kLong);
  const at::Tensor offsets = at::tensor({0, 1, 2}, at::kLong);
  const auto run = [&](const ExpertSlots& slots) { (void)grouped_experts(in[0], in[1], in[2], slots); };
  EXPECT_NO_THROW(run({tokens, in[3], offsets}));
  EXPECT_THROW(run({tokens, in[3], at::tensor({0, 2}, at::kLong)}), ShapeError);
  EXPECT_THROW(run({tokens, in[3], at::tensor({0, 2, 1}, at::kLong)}), ShapeError);
  EXPECT_THROW(run({tokens, in[3], at::tensor({0, 1, 3}, at::kLong)}), ShapeError);
  EXPECT_THROW(run({tokens, in[3].narrow(0, 0, 1), offsets}), ShapeError);
  EXPECT_THROW(run({tokens, in[3].to(at::kFloat), offsets}), ShapeError);
  EXPECT_THROW(run({at::tensor({0, 2}, at::kLong), in[3], offsets}), ShapeError);
  EXPECT_THROW((void)grouped_experts(in[0].to(at::kFloat), in[1], in[2], {tokens, in[3], offsets}), ShapeError);
  EXPECT_THROW((void)grouped_experts(in[0], in[2], in[1], {tokens, in[3], offsets}), ShapeError);
  for (const auto& [width, expert_width] : {std::pair<int64_t, int64_t>{0, 2}, {3, 0}}) {
    const std::vector<at::Tensor> nothing = random_inputs({2, width, expert_width, {0, 1}, {1, 1}}, at::kFloat);
    EXPECT_THROW((void)grouped_experts(nothing[0], nothing[1], nothing[2], {tokens, nothing[3], offsets}), ShapeError);
  }
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(CombineRows);

TEST_P(CombineRows, SumsInSinglePrecisionAndRoundsOnce) {
  // 256 + 1 + 1 in bf16 steps would stay 256.
  const at::Tensor rows = at::tensor({256.0, 1.0, 1.0}, at::kFloat).to(at::kBFloat16).reshape({3, 1});
  const at::Tensor out = combine_rows(rows, at::Tensor(), at::tensor({1, 1, 1}, at::kLong), 2);
  EXPECT_EQ(out[1].item<double>(), 258.0);
  EXPECT_EQ(out[0].item<double>(), 0.0);
}

TEST_P(CombineRows, LeavesOutSlotsWithoutToken) {
  const at::Tensor rows = at::tensor({2.0, 3.0, 5.0}, at::kDouble).reshape({3, 1});
  const at::Tensor out = combine_rows(rows, at::Tensor(), at::tensor(std::vector<int64_t>{1, kNoToken, 1}, at::kLong), 2);
  EXPECT_EQ(out[0].item<double>(), 0.0);
  EXPECT_EQ(out[1].item<double>(), 7.0);
}

TEST(GatherRows, FillsSlotsWithoutTokenWithZeros) {
  const at::Tensor rows = at::tensor({2.0, 3.0, 5.0, 7.0}, at::kDouble).reshape({2, 2});
  const at::Tensor out = gather_rows(rows, at::tensor(std::vector<int64_t>{1, kNoToken, 0, 1}, at::kLong));
  EXPECT_EQ(max_difference(out, at::tensor({5.0, 7.0, 0.0, 0.0, 2.0, 3.0, 5.0, 7.0}, at::kDouble).reshape({4, 2})), 0.0);
  EXPECT_THROW((void)gather_rows(rows, at::tensor({2}, at::kLong)), ShapeError);
  EXPECT_THROW((void)gather_rows(rows, at::tensor({-2}, at::kLong)), ShapeError);
}

// Groups are filled up to whole blocks of rows; sizes on both sides of a block, value and gradient.
TEST_P(GroupedExperts, FillsGroupsUpWithoutTrace) {
  Case c{5, 3, 4, {}, {7, 8, 9, 0, 17}};
  for (int64_t slot = 0; slot < 41; ++slot) c.tokens.push_back(slot * 3 % 5);
  expect_case(c, 1e-9);
}

}  // namespace
}  // namespace switchyard
