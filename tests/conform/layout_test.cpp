// Who adds up with whom, on grids small enough to write down; and the steps that the checks try.

#include "switchyard/conform/layout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "switchyard/conform/rearrange.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

using testing::ElementsAre;

TEST(Layout, GroupsAreOfTheStageAndHoldEachTokenOnce) {
  const DeviceGrid grid{.data = 2, .context = 1, .tensor = 2, .pipeline = 2};
  EXPECT_EQ(num_devices(grid), 8);
  EXPECT_EQ(num_shards(grid), 2);
  EXPECT_THAT(token_group(grid, 0), ElementsAre(0, 2));  // not its replica 1, not stage 1
  EXPECT_THAT(token_group(grid, 5), ElementsAre(5, 7));
}

TEST(Layout, ContextRanksBelongToTheGroup) {
  const DeviceGrid grid{.data = 2, .context = 2};
  EXPECT_THAT(token_group(grid, 3), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(shard_of(grid, 3), 3);
}

TEST(Layout, TensorRanksBelongToItWhereTheyShareTheTokens) {
  const DeviceGrid grid{.data = 1, .context = 1, .tensor = 2, .pipeline = 1, .tensor_tokens = TensorTokens::Sharded};
  EXPECT_EQ(num_shards(grid), 2);
  EXPECT_THAT(token_group(grid, 0), ElementsAre(0, 1));
}

TEST(Layout, EveryGroupCoversAllTokensOnce) {
  for (const TensorTokens tokens : {TensorTokens::Replicated, TensorTokens::Sharded}) {
    const DeviceGrid grid{.data = 2, .context = 3, .tensor = 2, .pipeline = 2, .tensor_tokens = tokens};
    for (int64_t device = 0; device < num_devices(grid); ++device) {
      std::vector<int64_t> shards;
      for (const int64_t member : token_group(grid, device)) shards.push_back(shard_of(grid, member));
      std::vector<int64_t> all(static_cast<size_t>(num_shards(grid)));
      std::iota(all.begin(), all.end(), int64_t{0});
      EXPECT_THAT(shards, testing::UnorderedElementsAreArray(all)) << "device " << device;
    }
  }
}

TEST(Layout, StagesTakeTheirLayersInOrder) {
  const DeviceGrid grid{.pipeline = 2};
  EXPECT_THAT(layers_of_stage(grid, 0, 3), ElementsAre(0, 1));
  EXPECT_THAT(layers_of_stage(grid, 1, 3), ElementsAre(2));
}

TEST(Rearrange, SequencesAreDealtInBlocksAndCutOverContextRanks) {
  const BalanceCase base = make_case({{{4, 2}}}, 1);
  const Rearranged changed = on_grid(base, {.data = 2, .context = 2});
  EXPECT_EQ(changed.step.num_ranks, 4);
  std::vector<int64_t> ranks;
  for (const CaseToken& token : changed.step.tokens) ranks.push_back(token.rank);
  EXPECT_THAT(ranks, ElementsAre(0, 0, 1, 1, 2, 3));
  EXPECT_THAT(changed.source_T, ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST(Rearrange, CopiesAddUpAtTheirSource) {
  const BalanceCase base = make_case({{{2}}}, 1);
  const Rearranged copied = copied_to_ranks(base, 3);
  Outcome outcome;
  outcome.gradient_LTE.assign(copied.step.logits_LTE.size(), 1.0);
  EXPECT_THAT(gradient_at_sources(copied, outcome, base), testing::Each(3.0));
}

// Beside every sequence, the last one too.
TEST(Rearrange, PaddingStandsBehindOrBeforeEachSequence) {
  const BalanceCase base = make_case({{{2, 1}}, {{1}}}, 1);
  const auto p = kPadding;
  EXPECT_THAT(with_padding(base, PaddingPlace::Behind).source_T, ElementsAre(0, 1, p, p, p, 2, p, p, p, 3, p, p, p));
  EXPECT_THAT(with_padding(base, PaddingPlace::Before).source_T, ElementsAre(p, p, p, 0, 1, p, p, p, 2, p, p, p, 3));
  const BalanceCase padded = with_padding(base, PaddingPlace::Before).step;
  EXPECT_EQ(padded.num_valid(), base.num_valid());
  EXPECT_EQ(padded.token(0).row, padded.token(3).row);  // its sequence's
  EXPECT_EQ(padded.token(9).micro_batch, 1);
  const BalanceCase longer = with_empty_micro_batch(base).step;
  EXPECT_EQ(longer.num_micro_batches, 3);
  EXPECT_EQ(valid_tokens(longer, 2, 0), 0);
}

TEST(Case, CallerWeightsFollowTheContract) {
  BalanceCase step = make_case({{{3}, {1}}, {{2}, {2}}}, 1);
  step.contract = {.micro_batches = Averaging::Mean, .ranks = Averaging::Sum};
  EXPECT_DOUBLE_EQ(caller_weight(step, 0, 0), 0.5);
  step.contract = {.micro_batches = Averaging::Mean, .ranks = Averaging::Mean};
  EXPECT_DOUBLE_EQ(caller_weight(step, 0, 0), 0.25);
  step.contract = {.micro_batches = Averaging::ByTokens, .ranks = Averaging::ByTokens};
  EXPECT_DOUBLE_EQ(caller_weight(step, 0, 0), 3.0 / 8);
  step.contract.ranks = Averaging::Mean;
  EXPECT_DOUBLE_EQ(caller_weight(step, 0, 0), 3.0 / 5 / 2);
}

TEST(Case, TokensMustComeInStepOrder) {
  BalanceCase step = make_case({{{3}}, {{2}}}, 1);
  std::swap(step.tokens.front(), step.tokens.back());
  EXPECT_THROW(check_case(step), UsageError);
}

}  // namespace
}  // namespace switchyard::conform
