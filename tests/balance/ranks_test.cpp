// N ranks x M micro-batches give the counts, the loss and the gradients of one process that is told the same partition: every
// scope, every method, uneven ranks, a rank without tokens, a micro-batch of padding.

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "dense_oracle.hpp"
#include "explicit_routing.hpp"
#include "ranked_step.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::toy {
namespace {

constexpr double kNear = 1e-11;

void expect_near(const std::vector<double>& given, const std::vector<double>& expected) {
  ASSERT_EQ(given.size(), expected.size());
  for (size_t i = 0; i < given.size(); ++i) EXPECT_NEAR(given[i], expected[i], kNear);
}

// The other ranks agree with the first in what is global.
void expect_ranks_agree(const RankedResult& result) {
  for (const StepResult& rank : result.ranks) {
    EXPECT_TRUE(rank.counts_LE.equal(result.ranks[0].counts_LE));
    EXPECT_TRUE(rank.micro_batch_counts_MLE.equal(result.ranks[0].micro_batch_counts_MLE));
    EXPECT_EQ(rank.values.weighted_loss, result.ranks[0].values.weighted_loss);
    EXPECT_TRUE(rank.state.previous_counts_LE.equal(result.ranks[0].state.previous_counts_LE));
  }
}

class RanksTest : public testing::TestWithParam<std::tuple<Scope, int64_t>> {
 protected:
  [[nodiscard]] static BalanceConfig config() {
    return {.method = "lbl", .scope = std::get<0>(GetParam()), .coefficient = 0.7, .z_coefficient = 0.05};
  }
  RankedLayout layout_ = uneven_ranks(std::get<1>(GetParam()));
  ToyModel model_ = make_model(3, layout_.whole.num_tokens());
  BalanceState history_ = some_history(5);
};

TEST_P(RanksTest, AreOneProcessThatIsToldTheSamePartition) {
  const OracleResult oracle = dense_oracle(model_, layout_.whole, config(), history_);
  const StepResult one = run_step(model_, layout_.whole, config(), plan_of(layout_.whole, Partition::Separate), history_);
  for (const Averaging over_ranks : {Averaging::Sum, Averaging::Mean, Averaging::ByTokens}) {
    for (const Averaging over_micro_batches : {Averaging::Sum, Averaging::Mean, Averaging::ByTokens}) {
      const RankedResult result = run_ranked_step(
          model_, layout_, config(), {.contract = {.micro_batches = over_micro_batches, .ranks = over_ranks}, .state = history_});
      EXPECT_LT(max_difference(result.gradients, oracle.gradients), kNear)
          << "ranks " << static_cast<int>(over_ranks) << ", micro-batches " << static_cast<int>(over_micro_batches);
      expect_near(result.ranks[0].values.lbl_L, oracle.lbl_L);
      expect_near(result.ranks[0].values.z_loss_L, oracle.z_loss_L);
      EXPECT_NEAR(result.ranks[0].values.weighted_loss, oracle.weighted_loss, kNear);
      EXPECT_TRUE(result.ranks[0].counts_LE.equal(one.counts_LE));
      expect_ranks_agree(result);
    }
  }
}

TEST_P(RanksTest, AnyOrderOfExecution) {
  const OracleResult oracle = dense_oracle(model_, layout_.whole, config(), history_);
  for (const Partition partition : {Partition::Together, Partition::Pairs, Partition::Separate}) {
    for (const Order order : {Order::Retain, Order::Prepass}) {
      const RankedResult result =
          run_ranked_step(model_, layout_, config(), {.partition = partition, .order = order, .state = history_});
      EXPECT_LT(max_difference(result.gradients, oracle.gradients), kNear);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scopes, RanksTest, testing::Combine(testing::ValuesIn(every_scope({2, 5})), testing::Values(1, 2, 3, 4)),
                         [](const auto& given) {
                           return test_name(join_text(to_string(std::get<0>(given.param)), "_", std::get<1>(given.param)));
                         });

class MethodTest : public testing::TestWithParam<std::tuple<std::string, Scope>> {};

TEST_P(MethodTest, HasTheGradientOfItsExpressionOnAnyNumberOfRanks) {
  const auto& [method, scope] = GetParam();
  const BalanceConfig config{.method = method, .scope = scope, .coefficient = 0.7};
  for (const int64_t num_ranks : {1, 2, 4}) {
    const RankedLayout layout = uneven_ranks(num_ranks, 3);
    const ToyModel model = make_model(11, layout.whole.num_tokens());
    const OracleResult oracle = dense_oracle(model, layout.whole, config);
    BalanceConfig none = config;
    none.coefficient = 0.0;
    EXPECT_GT(max_difference(oracle.gradients, dense_oracle(model, layout.whole, none).gradients), 1e-6) << "no loss to see";
    const RankedResult result = run_ranked_step(model, layout, config, {});
    EXPECT_LT(max_difference(result.gradients, oracle.gradients), 1e-9) << num_ranks << " ranks";
    ASSERT_EQ(result.ranks[0].values.terms.size(), 1U);
    for (size_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_NEAR(result.ranks[0].values.terms[0].value_L[layer], oracle.lbl_L[layer], 1e-9);
    }
    EXPECT_NEAR(result.ranks[0].values.weighted_loss, oracle.weighted_loss, 1e-9);
    expect_ranks_agree(result);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Methods, MethodTest,
    testing::Combine(testing::Values("gshard", "importance_cv2", "load_cv2", "variance", "expert_divergence"),
                     testing::Values(Scope{.kind = ScopeKind::Sequences, .num_sequences = 3}, Scope{.kind = ScopeKind::MicroBatch},
                                     Scope{.kind = ScopeKind::Ranks}, Scope{.kind = ScopeKind::OptimizerBatch})),
    [](const auto& given) {
      return test_name(join_text(std::get<0>(given.param), "_", to_string(std::get<1>(given.param))));
    });

// Several losses at once are the sum of each alone.
TEST(Terms, AddUp) {
  const RankedLayout layout = uneven_ranks(2, 3);
  const ToyModel model = make_model(2, layout.whole.num_tokens());
  const BalanceConfig global{.scope = {.kind = ScopeKind::OptimizerBatch}, .coefficient = 0.5};
  const BalanceConfig local{.scope = {.kind = ScopeKind::MicroBatch}, .coefficient = 0.005};
  BalanceConfig both = global;
  both.terms = {{.method = "lbl", .scope = local.scope, .coefficient = local.coefficient},
                {.method = "variance", .scope = {.kind = ScopeKind::Ranks}, .coefficient = 0.1},
                {.method = "load_cv2", .scope = {.kind = ScopeKind::Sequence}, .coefficient = 0.2},
                {.method = "lbl", .coefficient = 99.0, .from_step = 8},    // the plan is of step 7
                {.method = "lbl", .coefficient = 99.0, .to_step = 7}};
  const BalanceConfig none{.coefficient = 0.0};
  const Gradients base = dense_oracle(model, layout.whole, none).gradients;
  at::Tensor sum_TD = base.hidden_TD.clone();
  std::vector<BalanceConfig> parts = {global, local};
  parts.push_back({.method = "variance", .scope = {.kind = ScopeKind::Ranks}, .coefficient = 0.1});
  parts.push_back({.method = "load_cv2", .scope = {.kind = ScopeKind::Sequence}, .coefficient = 0.2});
  for (const BalanceConfig& part : parts) {
    sum_TD.add_(dense_oracle(model, layout.whole, part).gradients.hidden_TD.sub(base.hidden_TD));
  }
  const RankedResult result = run_ranked_step(model, layout, both, {});
  EXPECT_LT(max_abs_difference(result.gradients.hidden_TD, sum_TD), kNear);
  EXPECT_EQ(result.ranks[0].values.terms.size(), 4U);
}

// Rank 1 has nothing in the last forward, so it alone would count one micro-batch less.
TEST(MicroBatches, ThatNobodyCountsAreThoseOfAllRanks) {
  const RankedLayout layout = make_ranked_layout({{{6, 2}, {3}}, {{5}, {4}}, {{2, 1}, {}}});
  const ToyModel model = make_model(4, layout.whole.num_tokens());
  for (const ScopeKind kind : {ScopeKind::Sequence, ScopeKind::Ranks, ScopeKind::OptimizerBatch}) {
    const BalanceConfig config{.scope = {.kind = kind}, .coefficient = 0.7, .z_coefficient = 0.05};
    const StepResult one = run_step(model, layout.whole, config, plan_of(layout.whole, Partition::Separate));
    for (const Averaging contract : {Averaging::Sum, Averaging::Mean, Averaging::ByTokens}) {
      const RankedResult result = run_ranked_step(
          model, layout, config, {.contract = {.micro_batches = contract}, .counted = CountedBy::Nobody});
      EXPECT_LT(max_difference(result.gradients, one.gradients), kNear) << static_cast<int>(contract);
      EXPECT_EQ(result.ranks[1].micro_batch_counts_MLE.size(0), 3 * 2);
      EXPECT_TRUE(result.ranks[0].counts_LE.equal(one.counts_LE));
      expect_ranks_agree(result);
    }
  }
}

void expect_error_on_every_rank(int64_t num_ranks, const std::function<void(Communicator&)>& body,
                                std::string_view part_of_message) {
  std::atomic<int64_t> errors{0};
  run_ranks(num_ranks, [&](Communicator& comm) {
    try {
      body(comm);
    } catch (const CommError& error) {
      EXPECT_THAT(std::string(error.what()), testing::HasSubstr(std::string(part_of_message)));
      ++errors;
    }
  });
  EXPECT_EQ(errors, num_ranks);
}

TEST(BadInput, MismatchedExpertsEndEveryRankWithAName) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  expect_error_on_every_rank(
      3,
      [&](Communicator& comm) {
        const BalanceShape shape{.num_layers = 1, .num_experts = comm.rank() == 2 ? 8 : 4, .num_chosen = 2};
        const StepBalance balance({}, shape, plan, {}, {comm});
      },
      "rank 2 has 8");
}

TEST(BadInput, OtherScopesOnTwoRanksEndBoth) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  expect_error_on_every_rank(
      2,
      [&](Communicator& comm) {
        const Scope scope{.kind = comm.rank() == 0 ? ScopeKind::Ranks : ScopeKind::Prefix};
        const StepBalance balance({.scope = scope}, toy_shape(), plan, {}, {comm});
      },
      "balance settings");
}

// Restored on one rank only: what a loss reads must be the same on all, what none reads need not be.
TEST(BadInput, AHistoryThatOneRankLacksEndsEveryRank) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  const auto begin = [&plan](const BalanceConfig& config, const BalanceState& state) {
    return [&plan, config, state](Communicator& comm) {
      const StepBalance balance(config, toy_shape(), plan, comm.rank() == 1 ? state : BalanceState{}, {comm});
    };
  };
  const BalanceState counts{.previous_counts_LE = some_history(5).previous_counts_LE};
  const BalanceState ema{.ema_fractions_LE = some_history(5).ema_fractions_LE};
  const BalanceState offsets{.selection_offsets_LE = at::zeros({kLayers, kExperts}, at::kFloat)};
  const BalanceConfig previous{.scope = {.kind = ScopeKind::PreviousStep}};
  expect_error_on_every_rank(2, begin(previous, counts), "previous_counts_LE");
  expect_error_on_every_rank(2, begin({.scope = {.kind = ScopeKind::Ema, .decay = 0.9}}, ema), "ema_fractions_LE");
  expect_error_on_every_rank(2, begin({.selection = {.rule = SelectionRule::Bias}}, offsets), "selection_offsets_LE");
  BalanceConfig later{.terms = {{.scope = previous.scope, .from_step = 100}}};
  expect_error_on_every_rank(2, begin(later, counts), "previous_counts_LE");
  run_ranks(2, begin(previous, ema));
  run_ranks(2, begin({}, counts));
}

TEST(BadInput, OtherNumbersInAHistoryEndEveryRank) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  expect_error_on_every_rank(
      3,
      [&](Communicator& comm) {
        const BalanceConfig config{.scope = {.kind = ScopeKind::PreviousStep}};
        const StepBalance balance(config, toy_shape(), plan, some_history(comm.rank() == 2 ? 6 : 5), {comm});
      },
      "(hash, 0 is none) as previous_counts_LE of the balance state, rank 2 has");
}

TEST(BadInput, AHistoryOfAnotherShapeOnOneRankEndsEveryRank) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  const BalanceState wide{.previous_counts_LE = at::zeros({kLayers, 2 * kExperts}, at::kLong),
                          .selection_offsets_LE = at::zeros({kLayers, 2 * kExperts}, at::kFloat)};
  for (const BalanceConfig& config : {BalanceConfig{.scope = {.kind = ScopeKind::PreviousStep}},
                                      BalanceConfig{.selection = {.rule = SelectionRule::Bias}}}) {
    expect_error_on_every_rank(
        2,
        [&](Communicator& comm) {
          const StepBalance balance(config, toy_shape(), plan, comm.rank() == 1 ? wide : BalanceState{}, {comm});
        },
        "rank 1: balance state: ");
    EXPECT_THROW(StepBalance(config, toy_shape(), plan, wide), ShapeError);
  }
}

TEST(BadInput, APlanThatOneRankGetsWrongEndsEveryRank) {
  expect_error_on_every_rank(
      2,
      [&](Communicator& comm) {
        StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
        if (comm.rank() == 1) plan.segment_tokens[0] = -1;
        const StepBalance balance({}, toy_shape(), plan, {}, {comm});
      },
      "segment 0 has -1 tokens");
}

// Rank 1's probabilities go bad in the second of two forwards. With a scope that needs no message the error waits for the end.
TEST(BadInput, ProbabilitiesThatAreNotFiniteEndEveryRank) {
  for (const ScopeKind kind : {ScopeKind::Ranks, ScopeKind::OptimizerBatch, ScopeKind::Sequence}) {
    expect_error_on_every_rank(
        2,
        [&](Communicator& comm) {
          const Layout layout = make_layout({{3}, {2}});
          ToyModel model = make_model(1, layout.num_tokens());
          if (comm.rank() == 1) model.hidden_TD.mutable_data_ptr<double>()[4 * kWidth] = std::nan("");
          const BalanceRanks ranks{comm};
          static_cast<void>(run_step(model, layout, {.scope = {.kind = kind}}, plan_of(layout, Partition::Separate), {},
                                     Order::Retain, {&ranks, 10, 1.0}));
        },
        "rank 1: step 7, forward 1");
  }
}

// Rank 1's router passes its probabilities through and goes on with what it had.
TEST(BadInput, AnIdentityBesideTheGraphOfOneRankEndsEveryRank) {
  expect_error_on_every_rank(
      2,
      [&](Communicator& comm) {
        StepBalance balance({.coefficient = 0.1}, {.num_layers = 1, .num_experts = 2, .num_chosen = 1}, explicit_plan({{1}}), {},
                            {comm});
        ExplicitForward forward = explicit_forward({{0, {0}, {.5, .5}}}, 2);
        const at::Tensor probs_TE = forward.routing.probs_TE.set_requires_grad(true);
        const at::Tensor passed_TE = balance.through_probs(0, 0, probs_TE, forward.segment_T);
        balance.record(0, 0, forward.routing, forward.segment_T);
        balance.close_forward(0);
        balance.close_counting();
        (comm.rank() == 1 ? probs_TE : passed_TE).sum().backward();
        BalanceState state;
        balance.finish(state);
      },
      "rank 1: step 0, forward 0, layer 0: no backward came through");
}

TEST(BadInput, RanksThatCutTheStepDifferentlyAreTold) {
  expect_error_on_every_rank(
      2,
      [&](Communicator& comm) {
        const StepPlan plan = plan_of(make_layout({{3}, {2}}), comm.rank() == 0 ? Partition::Separate : Partition::Together);
        const StepBalance balance({}, toy_shape(), plan, {}, {comm});
      },
      "forwards");
}

// Micro-batches 0 and 1 on the first rank, 2 and 3 on the second, each in two forwards: counts of 1 would be sent before they exist.
TEST(BadInput, RanksThatNumberMicroBatchesRankAfterRankAreTold) {
  expect_error_on_every_rank(
      2,
      [&](Communicator& comm) {
        StepPlan plan = plan_of(make_layout({{3}, {2}}), Partition::Separate);
        plan.num_micro_batches = 4;
        for (int64_t& micro_batch : plan.segment_micro_batch) micro_batch += 2 * comm.rank();
        const StepBalance balance({}, toy_shape(), plan, {}, {comm});
      },
      "number micro-batch j of every rank j");
}

TEST(BadInput, ReplicasOfWhichNoneCountsAreTold) {
  const StepPlan plan = plan_of(make_layout({{3}}), Partition::Separate);
  for (const int64_t first : {1, -1}) {
    expect_error_on_every_rank(
        2,
        [&](Communicator& comm) {
          const StepBalance balance({}, toy_shape(), plan, {}, {comm, RankShare{.data_rank = 0, .replica = first + comm.rank()}});
        },
        "expected replicas numbered from 0");
  }
}

}  // namespace
}  // namespace switchyard::toy
