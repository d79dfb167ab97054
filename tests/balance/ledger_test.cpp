// The book of a step: exact, idempotent, and loud about contradictions.

#include "switchyard/balance/ledger.hpp"

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "explicit_routing.hpp"
#include "switchyard/balance/method.hpp"

namespace switchyard::toy {
namespace {

SegmentStatistics statistics_of(const std::vector<int64_t>& counts_E, int64_t tokens) {
  SegmentStatistics statistics;
  statistics.counts.counts_GE = at::empty({1, static_cast<int64_t>(counts_E.size())}, at::kLong);
  std::copy(counts_E.begin(), counts_E.end(), statistics.counts.counts_GE.mutable_data_ptr<int64_t>());
  statistics.counts.tokens_G = at::empty({1}, at::kLong).fill_(tokens);
  return statistics;
}

BalanceConfig default_config() { return {.method = "lbl", .scope = {.kind = ScopeKind::OptimizerBatch}, .coefficient = 0.1}; }
BalanceShape shape_of(int64_t num_layers) { return {.num_layers = num_layers, .num_experts = 2, .num_chosen = 1}; }
ExplicitForward one_token(std::vector<double> probs = {.5, .5}, int64_t expert = 0) {
  return explicit_forward({{0, {expert}, std::move(probs)}}, 2);
}

TEST(Ledger, B28CountsAreExactBeyondTwoToTheThirtyOneAndTheRangeOfDouble) {
  constexpr int64_t kMany = (int64_t{1} << 60) + 1;  // no double holds this
  StepLedger ledger(explicit_plan({{kMany}, {7}}), 1, 2);
  ledger.record(0, 0, statistics_of({kMany, 0}, kMany));
  ledger.record(1, 0, statistics_of({3, 4}, 7));
  EXPECT_THAT(ledger.counts_E(Counted::Slots, 0, {0, 2}), testing::ElementsAre(kMany + 3, 4));
  EXPECT_EQ(ledger.micro_batch_counts_MLE().sum(0).const_data_ptr<int64_t>()[0], kMany + 3);
  EXPECT_THROW(ledger.record(0, 0, statistics_of({kMany - 1, 1}, kMany)), StateError);  // one slot in 2^60 is seen
}

TEST(Ledger, B28TwoToTheThirtyOneAndOneSelections) {
  constexpr int64_t kMany = (int64_t{1} << 31) + 1;
  StepLedger ledger(explicit_plan({{kMany}}), 1, 2);
  ledger.record(0, 0, statistics_of({kMany - 1, 1}, kMany));
  const std::vector<double> f = fractions(ledger.counts_E(Counted::Slots, 0, {0, 1}));
  EXPECT_DOUBLE_EQ(f[0] + f[1], 1.0);
  EXPECT_DOUBLE_EQ(f[1], 1.0 / static_cast<double>(kMany));
}

TEST(Ledger, ADifferentSecondRunNamesStepForwardLayerAndExpert) {
  StepPlan plan = explicit_plan({{1}, {1}});
  plan.step = 41;
  StepLedger ledger(plan, 3, 2);
  ledger.record(1, 2, statistics_of({0, 1}, 1));
  ledger.record(1, 2, statistics_of({0, 1}, 1));
  EXPECT_THAT(ledger.counts_E(Counted::Slots, 2, {0, 2}), testing::ElementsAre(0, 1));
  expect_message<StateError>(
      [&] {
        ledger.record(1, 2, statistics_of({1, 0}, 1));
      },
      "step 41, forward 1, layer 2: the second run sent 1 slots of segment 0 to expert 0, the first 0");
}

TEST(Ledger, TheFirstRunsProbabilitiesAreKept) {
  StepLedger ledger(explicit_plan({{1}}), 1, 2);
  SegmentStatistics statistics = statistics_of({0, 1}, 1);
  statistics.prob_sums_SE = at::empty({1, 2}, at::kDouble).fill_(0.5);
  ledger.record(0, 0, statistics);
  statistics.prob_sums_SE = at::empty({1, 2}, at::kDouble).fill_(9.0);
  ledger.record(0, 0, statistics);
  EXPECT_THAT(ledger.sums_E(TokenSum::Probs, 0, {0, 1}), testing::ElementsAre(0.5, 0.5));
}

TEST(Ledger, TokensMustBeThoseOfThePlan) {
  StepLedger ledger(explicit_plan({{3}}), 1, 2);
  expect_message<ShapeError>(
      [&] {
        ledger.record(0, 0, statistics_of({1, 1}, 2));
      },
      "segment 0 has 2 valid tokens; the plan says 3");
}

TEST(Lifecycle, ProbabilitiesMustSumToOne) {
  StepBalance balance(default_config(), shape_of(1), explicit_plan({{1}}), {});
  expect_message<ShapeError>([&] { record_explicit(balance, 0, 0, one_token({.5, .51})); }, "sum to 1.01; expected 1 a token");
  EXPECT_NO_THROW(record_explicit(balance, 0, 0, one_token({.5, .5001})));
}

TEST(Lifecycle, BackwardBeforeTheCoefficientIsKnownIsAnError) {
  StepBalance balance(default_config(), shape_of(1), explicit_plan({{1}, {1}}), {});
  ExplicitForward forward = one_token();
  const at::Tensor leaf_TE = forward.routing.probs_TE.set_requires_grad(true);
  const at::Tensor passed_TE = balance.through_probs(0, 0, leaf_TE, forward.segment_T);
  balance.record(0, 0, forward.routing, forward.segment_T);
  balance.close_forward(0);  // the second forward is missing
  expect_message<StateError>([&] { passed_TE.sum().backward({}, /*retain_graph=*/true); },
                             "step 0, forward 0, layer 0: the balancing coefficients are not known yet");
  record_explicit(balance, 1, 0, one_token());
  balance.close_forward(1);
  balance.close_counting();
  passed_TE.sum().backward();
  EXPECT_THAT(doubles_of(leaf_TE.grad()), testing::ElementsAre(1.0 + 0.1 * 2 / 2, 1.0));
}

TEST(Lifecycle, TheGraphOutlivesTheStep) {
  at::Tensor leaf_TE;
  at::Tensor passed_TE;
  {
    StepBalance balance(default_config(), shape_of(1), explicit_plan({{1}}), {});
    ExplicitForward forward = one_token();
    leaf_TE = forward.routing.probs_TE.set_requires_grad(true);
    passed_TE = balance.through_probs(0, 0, leaf_TE, forward.segment_T);
    balance.record(0, 0, forward.routing, forward.segment_T);
    balance.close_forward(0);
    balance.close_counting();
  }
  passed_TE.mul(0.0).sum().backward();
  EXPECT_THAT(doubles_of(leaf_TE.grad()), testing::ElementsAre(0.2, 0.0));
}

TEST(Lifecycle, Float32ProbabilitiesGetFloat32Gradients) {
  StepBalance balance(default_config(), shape_of(1), explicit_plan({{2}}), {});
  ExplicitForward forward = explicit_forward({{0, {0}, {.5, .5}}, {-1, {0}, {.5, .5}}, {0, {1}, {.5, .5}}}, 2);
  forward.routing.probs_TE = forward.routing.probs_TE.to(at::kFloat);
  const at::Tensor leaf_TE = forward.routing.probs_TE.set_requires_grad(true);
  const at::Tensor passed_TE = balance.through_probs(0, 0, leaf_TE, forward.segment_T);
  EXPECT_EQ(passed_TE.scalar_type(), at::kFloat);
  balance.record(0, 0, forward.routing, forward.segment_T);
  balance.close_forward(0);
  balance.close_counting();
  passed_TE.mul(0.0).sum().backward();
  // .1 * 2 * .5 / 2 for each valid token and expert, nothing for padding.
  const std::vector<double> expected = {.05F, .05F, 0, 0, .05F, .05F};
  EXPECT_EQ(doubles_of(leaf_TE.grad()), expected);
}

TEST(Lifecycle, B24ALossThatCannotActIsAnError) {
  StepBalance balance(default_config(), shape_of(1), explicit_plan({{1}}), {});
  ExplicitForward forward = one_token();
  expect_message<StateError>([&] { balance.record(0, 0, forward.routing, forward.segment_T); },
                             "did not pass its probabilities through");
  static_cast<void>(balance.through_probs(0, 0, forward.routing.probs_TE, forward.segment_T));
  forward.routing.probs_TE.reset();
  expect_message<StateError>([&] { balance.record(0, 0, forward.routing, forward.segment_T); }, "balance.method = \"none\"");

  BalanceConfig z_only = default_config();
  z_only.method = "none";
  z_only.z_coefficient = 0.1;
  StepBalance z_balance(z_only, shape_of(1), explicit_plan({{1}}), {});
  expect_message<StateError>([&] { z_balance.record(0, 0, forward.routing, forward.segment_T); }, "z_coefficient = 0");
}

// A router that calls the identity and goes on with what it had: the value would be logged, and nothing would act.
TEST(Lifecycle, B24AnIdentityBesideTheGraphIsAnError) {
  for (const bool go_on_with_it : {true, false}) {
    BalanceConfig config = default_config();
    config.z_coefficient = 0.1;
    StepBalance balance(config, shape_of(2), explicit_plan({{1}}), {});
    at::Tensor sum;
    for (const int64_t layer : {0, 1}) {
      ExplicitForward forward = one_token();
      const at::Tensor leaf_TE = forward.routing.logits_TE.set_requires_grad(true);
      forward.routing.logits_TE = balance.through_logits(0, layer, leaf_TE, forward.segment_T);
      const at::Tensor probs_TE = forward.routing.logits_TE.softmax(-1);
      const at::Tensor passed_TE = balance.through_probs(0, layer, probs_TE, forward.segment_T);
      forward.routing.probs_TE = layer == 0 || go_on_with_it ? passed_TE : probs_TE;
      balance.record(0, layer, forward.routing, forward.segment_T);
      sum = layer == 0 ? forward.routing.probs_TE.sum() : sum.add(forward.routing.probs_TE.sum());
    }
    balance.close_forward(0);
    balance.close_counting();
    BalanceState state;
    expect_message<StateError>([&] { balance.finish(state); }, "step 0, forward 0, layer 0: no backward came through");
    sum.backward();
    if (go_on_with_it) {
      EXPECT_NO_THROW(balance.finish(state));
    } else {
      expect_message<StateError>([&] { balance.finish(state); }, "layer 1: no backward came through what through_probs()");
      EXPECT_FALSE(state.previous_counts_LE.defined());
    }
  }
}

TEST(Lifecycle, B5ScoresPassWithTheSegmentsTheyAreCountedIn) {
  const std::vector<Token> tokens = {{0, {0}, {.5, .5}}, {1, {1}, {.5, .5}}};
  const ExplicitForward forward = explicit_forward(tokens, 2);
  const at::Tensor swapped_T = forward.segment_T.flip(0);
  BalanceConfig with_z = default_config();
  with_z.z_coefficient = 0.1;
  StepBalance balance(with_z, shape_of(1), explicit_plan({{1, 1}}), {});
  expect_message<ShapeError>([&] { static_cast<void>(balance.through_probs(0, 0, forward.routing.probs_TE, at::zeros({1}, at::kLong))); },
                             "step 0, forward 0, layer 0: scores of shape [2, 2] with segment numbers of shape [1]");
  static_cast<void>(balance.through_logits(0, 0, forward.routing.logits_TE, forward.segment_T));
  static_cast<void>(balance.through_probs(0, 0, forward.routing.probs_TE, swapped_T));
  expect_message<ShapeError>([&] { balance.record(0, 0, forward.routing, forward.segment_T); }, "with other segment numbers");
  static_cast<void>(balance.through_probs(0, 0, forward.routing.probs_TE, forward.segment_T.clone()));
  static_cast<void>(balance.through_logits(0, 0, forward.routing.logits_TE, swapped_T));
  expect_message<ShapeError>([&] { balance.record(0, 0, forward.routing, forward.segment_T); }, "with other segment numbers");
  static_cast<void>(balance.through_logits(0, 0, forward.routing.logits_TE, forward.segment_T));
  EXPECT_NO_THROW(balance.record(0, 0, forward.routing, forward.segment_T));
}

// The z-loss is not linear in the logits: with create_graph its second derivative would be missing without a word.
TEST(Lifecycle, SecondDerivativesAreRefusedWhereTheyWouldBeWrong) {
  BalanceConfig config = default_config();
  for (const double z_coefficient : {0.0, 0.1}) {
    config.z_coefficient = z_coefficient;
    StepBalance balance(config, shape_of(1), explicit_plan({{1}}), {});
    ExplicitForward forward = one_token();
    const at::Tensor leaf_TE = forward.routing.logits_TE.set_requires_grad(true);
    forward.routing.logits_TE = balance.through_logits(0, 0, leaf_TE, forward.segment_T);
    forward.routing.probs_TE = balance.through_probs(0, 0, forward.routing.logits_TE.softmax(-1), forward.segment_T);
    balance.record(0, 0, forward.routing, forward.segment_T);
    balance.close_forward(0);
    balance.close_counting();
    const auto differentiate = [&] {
      static_cast<void>(torch::autograd::grad({forward.routing.probs_TE.square().sum()}, {leaf_TE}, {}, std::nullopt, /*create_graph=*/true));
    };
    if (z_coefficient == 0.0) {
      EXPECT_NO_THROW(differentiate());
    } else {
      expect_message<UsageError>(differentiate, "z-loss: its backward was run with create_graph=true");
    }
  }
}

TEST(Lifecycle, RoutersWithoutScoresAreCountedWhereNoLossIsAskedFor) {
  for (const double coefficient : {0.1, 0.0}) {
    BalanceConfig config = default_config();
    config.coefficient = coefficient;
    if (coefficient != 0.0) config.method = "none";
    StepBalance balance(config, shape_of(1), explicit_plan({{1}}), {});
    ExplicitForward forward = one_token();
    forward.routing.probs_TE = forward.routing.logits_TE = at::Tensor();
    balance.record(0, 0, forward.routing, forward.segment_T);
    balance.close_forward(0);
    balance.close_counting();
    EXPECT_TRUE(balance.values().lbl_L.empty());
    EXPECT_EQ(balance.values().weighted_loss, 0.0);
    EXPECT_THAT(doubles_of(balance.step_counts_LE()), testing::ElementsAre(1, 0));
  }
}

TEST(Lifecycle, NonFiniteProbabilitiesAreNamed) {
  StepBalance balance(default_config(), shape_of(2), explicit_plan({{1}}), {});
  expect_message<ShapeError>(
      [&] {
        record_explicit(balance, 0, 1, one_token({.5, std::nan("")}));
      },
      "step 0, forward 0, layer 1: router probabilities summed over segment 0, column 1 give nan");
  StepBalance padded(default_config(), shape_of(1), explicit_plan({{1}}), {});
  const ExplicitForward with_padding = explicit_forward({{0, {0}, {.5, .5}}, {-1, {0}, {std::nan(""), 0}}}, 2);
  EXPECT_NO_THROW(record_explicit(padded, 0, 0, with_padding));  // what padding holds does not matter
}

TEST(Lifecycle, CallsOutOfOrder) {
  StepBalance balance(default_config(), shape_of(2), explicit_plan({{1}, {1}}), {});
  record_explicit(balance, 0, 0, one_token());
  expect_message<StateError>([&] { balance.close_forward(0); }, "step 0, forward 0, layer 1: close_forward() before record()");
  expect_message<StateError>([&] { balance.close_counting(); }, "before close_forward(0)");
  expect_message<StateError>([&] { static_cast<void>(balance.values()); }, "before close_counting()");
  expect_message<StateError>([&] { static_cast<void>(balance.step_counts_LE()); }, "before close_counting()");
  BalanceState state;
  expect_message<StateError>([&] { balance.finish(state); }, "before close_counting()");
  expect_message<StateError>([&] { static_cast<void>(balance.coefficients_SE(0, 0)); }, "not known yet");
  expect_message<UsageError>([&] { record_explicit(balance, 2, 0, one_token()); }, "forward 2 of a plan with 2");
  expect_message<UsageError>([&] { record_explicit(balance, 0, 2, one_token()); }, "layer 2 of 2 MoE layers");
  expect_message<ShapeError>(
      [&] {
        record_explicit(balance, 0, 1, explicit_forward({{0, {0}, {.5, .3, .2}}}, 3));
      },
      "scores of shape [1, 3] with segment numbers of shape [1]; expected [T, 2]");
  expect_message<ShapeError>(
      [&] {
        record_explicit(balance, 0, 1, explicit_forward({{1, {0}, {.5, .5}}}, 2));
      },
      "segment numbers are 1 to 1; expected -1 (padding) to 0");
}

TEST(Lifecycle, AStateOfAnotherModelIsRefused) {
  BalanceConfig config = default_config();
  config.scope.kind = ScopeKind::PreviousStep;
  const BalanceState state{.previous_counts_LE = at::empty({1, 3}, at::kLong).fill_(1), .ema_fractions_LE = {}};
  expect_message<ShapeError>([&] { StepBalance(config, shape_of(1), explicit_plan({{1}}), state); }, "expected int64 [1, 2]");
}

TEST(Config, ChecksAndSpellings) {
  const auto broken = [](const auto& change, const std::string& text) {
    BalanceConfig config = default_config();
    change(config);
    expect_message<ConfigError>([&] { config.validate("demo.toml:3: balance"); }, text);
  };
  broken([](BalanceConfig& c) { c.method = "lbk"; },
         "demo.toml:3: balance: unknown balancing method 'lbk' (did you mean 'lbl'?)");
  broken([](BalanceConfig& c) { c.coefficient = -1; }, "coefficient = -1; expected a number from 0 to 1e20");
  broken([](BalanceConfig& c) { c.z_coefficient = std::nan(""); }, "z_coefficient = nan");
  broken([](BalanceConfig& c) { c.scope = {.kind = ScopeKind::Sequences}; }, "at least 1 sequence");
  broken([](BalanceConfig& c) { c.scope = {.kind = ScopeKind::Ema}; }, "expected a decay above 0 and below 1");
  EXPECT_NO_THROW(default_config().validate(""));
  GroupWeighting weighting{};
  LayerReduction layers{};
  for (const std::string name : {"mean", "tokens"}) {
    parse(name, weighting);
    EXPECT_EQ(to_string(weighting), name);
  }
  for (const std::string name : {"sum", "mean"}) {
    parse(name, layers);
    EXPECT_EQ(to_string(layers), name);
  }
  expect_message<ConfigError>([&] { parse("token", weighting); }, "did you mean 'tokens'?");
}

TEST(Table, EveryBalancerHasAUniqueNameAndIsFound) {
  std::vector<std::string_view> names;
  for (const BalancerEntry& entry : balancer_table()) {
    EXPECT_FALSE(entry.description.empty());
    EXPECT_EQ(entry.kind == BalancerKind::Setting, entry.description.starts_with("setting: "));
    if (entry.kind == BalancerKind::Method) {
      EXPECT_NO_THROW(static_cast<void>(find_method(entry.name)));
    }
    EXPECT_THAT(names, testing::Not(testing::Contains(entry.name)));
    names.push_back(entry.name);
  }
}

}  // namespace
}  // namespace switchyard::toy
