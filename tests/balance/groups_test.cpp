// The scope by itself: which segments are averaged, which are counted, what each group weighs.

#include "switchyard/balance/groups.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Micro-batch 0: segments 0, 1; 1: segments 2 (empty), 3, 4; 2: segment 5 (empty); 3: segment 6.
StepPlan seven_segments() {
  return {.step = 0,
          .segment_tokens = {4, 2, 0, 3, 1, 0, 10},
          .segment_micro_batch = {0, 0, 1, 1, 1, 2, 3},
          .forward_begin = {0, 2, 5, 6, 7},
          .contract = {},
          .num_micro_batches = 4};
}

std::vector<SegmentRange> averaged(const std::vector<BalanceGroup>& groups) {
  std::vector<SegmentRange> ranges;
  for (const BalanceGroup& group : groups) ranges.push_back(group.averaged);
  return ranges;
}
std::vector<SegmentRange> counted(const std::vector<BalanceGroup>& groups) {
  std::vector<SegmentRange> ranges;
  for (const BalanceGroup& group : groups) ranges.push_back(group.counted);
  return ranges;
}
std::vector<double> weights(const std::vector<BalanceGroup>& groups) {
  std::vector<double> result;
  for (const BalanceGroup& group : groups) result.push_back(group.weight);
  return result;
}

using testing::DoubleEq;
using testing::ElementsAre;

TEST(Groups, SequenceLeavesEmptySegmentsOut) {
  const auto groups = make_groups({.kind = ScopeKind::Sequence}, GroupWeighting::Tokens, seven_segments());
  EXPECT_THAT(averaged(groups),
              ElementsAre(SegmentRange{0, 1}, SegmentRange{1, 2}, SegmentRange{3, 4}, SegmentRange{4, 5}, SegmentRange{6, 7}));
  EXPECT_EQ(averaged(groups), counted(groups));
  EXPECT_THAT(weights(groups), ElementsAre(DoubleEq(.2), DoubleEq(.1), DoubleEq(.15), DoubleEq(.05), DoubleEq(.5)));
}

TEST(Groups, SequencesRunOverMicroBatchBordersAndSkipEmptySegments) {
  const Scope scope{.kind = ScopeKind::Sequences, .num_sequences = 3};
  const auto groups = make_groups(scope, GroupWeighting::Mean, seven_segments());
  EXPECT_THAT(averaged(groups), ElementsAre(SegmentRange{0, 4}, SegmentRange{4, 7}));
  // 9 tokens in the full group, 11 in the short one.
  EXPECT_THAT(weights(groups), ElementsAre(DoubleEq(9.0 / 20), DoubleEq(11.0 / 20)));
}

TEST(Groups, AFullLastGroupIsNotShort) {
  const Scope scope{.kind = ScopeKind::Sequences, .num_sequences = 5};
  EXPECT_THAT(weights(make_groups(scope, GroupWeighting::Mean, seven_segments())), ElementsAre(1.0));
  const Scope single{.kind = ScopeKind::Sequences, .num_sequences = 1};
  EXPECT_THAT(weights(make_groups(single, GroupWeighting::Mean, seven_segments())), ElementsAre(.2, .2, .2, .2, .2));
}

TEST(Groups, MicroBatchAndPrefix) {
  const auto micro = make_groups({.kind = ScopeKind::MicroBatch}, GroupWeighting::Mean, seven_segments());
  EXPECT_THAT(averaged(micro), ElementsAre(SegmentRange{0, 2}, SegmentRange{3, 5}, SegmentRange{6, 7}));
  EXPECT_THAT(weights(micro), ElementsAre(DoubleEq(1.0 / 3), DoubleEq(1.0 / 3), DoubleEq(1.0 / 3)));
  const auto prefix = make_groups({.kind = ScopeKind::Prefix}, GroupWeighting::Tokens, seven_segments());
  EXPECT_EQ(averaged(prefix), averaged(micro));
  EXPECT_THAT(counted(prefix), ElementsAre(SegmentRange{0, 2}, SegmentRange{0, 5}, SegmentRange{0, 7}));
}

TEST(Groups, WholeStepScopes) {
  const auto exact = make_groups({.kind = ScopeKind::OptimizerBatch}, GroupWeighting::Mean, seven_segments());
  EXPECT_THAT(averaged(exact), ElementsAre(SegmentRange{0, 7}));
  EXPECT_EQ(exact[0].counted, exact[0].averaged);
  EXPECT_EQ(exact[0].tokens, 20);
  for (const ScopeKind kind : {ScopeKind::PreviousStep, ScopeKind::Ema}) {
    const auto stale = make_groups({.kind = kind, .decay = 0.5}, GroupWeighting::Mean, seven_segments());
    EXPECT_EQ(averaged(stale), averaged(exact));
    EXPECT_TRUE(stale[0].counted.empty());
  }
}

TEST(Groups, NeedsWholeStep) {
  const StepPlan separate = seven_segments();
  StepPlan together = separate;
  together.forward_begin = {0, 7};
  using enum ScopeKind;
  for (const ScopeKind kind : {Sequence, MicroBatch, Ranks, Prefix, PreviousStep}) {
    EXPECT_FALSE(needs_whole_step({.kind = kind}, separate)) << to_string(Scope{.kind = kind});
  }
  EXPECT_TRUE(needs_whole_step({.kind = OptimizerBatch}, separate));
  EXPECT_FALSE(needs_whole_step({.kind = OptimizerBatch}, together));
  EXPECT_TRUE(needs_whole_step({.kind = Sequences, .num_sequences = 3}, separate));
  EXPECT_FALSE(needs_whole_step({.kind = Sequences, .num_sequences = 2}, separate));
  EXPECT_FALSE(needs_whole_step({.kind = Sequences, .num_sequences = 1}, separate));
}

TEST(Groups, PropertiesOfAnyPlan) {
  EXPECT_TRUE(rc::check("weights sum to 1, groups cover every token once, in order", [] {
    StepPlan plan;
    const auto lengths = *rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 5));
    for (const int length : lengths) {
      plan.segment_tokens.push_back(length);
      plan.segment_micro_batch.push_back(plan.num_micro_batches);
      plan.num_micro_batches += *rc::gen::inRange(0, 3);
    }
    ++plan.num_micro_batches;
    plan.forward_begin = {0, plan.num_segments()};
    const auto& info = scope_table().at(*rc::gen::inRange<size_t>(0, scope_table().size()));
    const Scope scope{.kind = info.kind, .num_sequences = *rc::gen::inRange(1, 5), .decay = 0.5};
    const auto weighting = *rc::gen::element(GroupWeighting::Mean, GroupWeighting::Tokens);
    const std::vector<BalanceGroup> groups = make_groups(scope, weighting, plan);
    int64_t end = 0;
    int64_t tokens = 0;
    double weight = 0.0;
    for (const BalanceGroup& group : groups) {
      RC_ASSERT(group.averaged.begin >= end);
      end = group.averaged.end;
      RC_ASSERT(group.tokens == std::accumulate(plan.segment_tokens.begin() + group.averaged.begin,
                                                plan.segment_tokens.begin() + end, int64_t{0}));
      RC_ASSERT(group.tokens > 0 && group.weight > 0);
      tokens += group.tokens;
      weight += group.weight;
    }
    RC_ASSERT(tokens == plan.step_tokens());
    RC_ASSERT(groups.empty() == (tokens == 0));
    RC_ASSERT(groups.empty() || std::abs(weight - 1.0) < 1e-12);
    // One forward holds the step, so nothing can come too late.
    RC_ASSERT(!needs_whole_step(scope, plan));
  }));
}

TEST(Plan, ContradictionsAreUsageErrors) {
  const StepPlan good = seven_segments();
  EXPECT_NO_THROW(check_plan(good));
  const auto expect_error = [&good](const auto& change, const std::string& text) {
    StepPlan plan = good;
    change(plan);
    try {
      check_plan(plan);
      ADD_FAILURE() << "no error; expected one with: " << text;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(text));
    }
  };
  expect_error([](StepPlan& plan) { plan.segment_tokens.pop_back(); }, "one of each per segment");
  expect_error([](StepPlan& plan) { plan.segment_tokens[1] = -1; }, "segment 1 has -1 tokens");
  expect_error([](StepPlan& plan) { plan.segment_micro_batch[6] = 0; }, "in the order of their micro-batches");
  expect_error([](StepPlan& plan) { plan.forward_begin = {0, 3, 7}; }, "micro-batch 1 is split before forward 1");
  expect_error([](StepPlan& plan) { plan.forward_begin = {0, 2, 5}; }, "must rise from 0");
  expect_error([](StepPlan& plan) { plan.forward_begin = {}; }, "must rise from 0");
  expect_error([](StepPlan& plan) { plan.num_micro_batches = 2; }, "num_micro_batches is 2");
  expect_error(
      [](StepPlan& plan) {
        plan.forward_begin = {0, 5, 6, 7};
        plan.contract.micro_batches = Averaging::ByTokens;
      },
      "cannot be weighed by tokens");
}

}  // namespace
}  // namespace switchyard
