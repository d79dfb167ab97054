// Numbers worked out by hand: two experts, one layer, lambda .1, four tokens in two micro-batches of two.
//   micro-batch 0: both tokens to expert 0 with probabilities (.75, .25)
//   micro-batch 1: one to expert 1 with (.25, .75), one to expert 0 with (.5, .5)
// Step: counts (3, 1), P = (.5625, .4375).

#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "explicit_routing.hpp"

namespace switchyard::toy {
namespace {

using testing::DoubleNear;
using testing::Pointwise;

constexpr double kTolerance = 1e-14;

std::vector<std::vector<Token>> four_tokens() {
  return {{{0, {0}, {.75, .25}}, {1, {0}, {.75, .25}}}, {{0, {1}, {.25, .75}}, {1, {0}, {.5, .5}}}};
}
StepPlan four_token_plan() { return explicit_plan({{1, 1}, {1, 1}}); }

BalanceConfig config_of(Scope scope, GroupWeighting weighting = GroupWeighting::Tokens) {
  return {.method = "lbl", .scope = scope, .coefficient = 0.1, .z_coefficient = 0.0, .weighting = weighting};
}

void expect_step(const BalanceConfig& config, double lbl, const std::vector<double>& first_SE,
                 const std::vector<double>& second_SE, const BalanceState& state = {}) {
  const StepBalance step = explicit_step(config, four_tokens(), four_token_plan(), 2, state);
  EXPECT_NEAR(step.values().lbl_L.at(0), lbl, kTolerance);
  EXPECT_NEAR(step.values().weighted_loss, 0.1 * lbl, kTolerance);
  EXPECT_THAT(doubles_of(step.coefficients_SE(0, 0)), Pointwise(DoubleNear(kTolerance), first_SE));
  EXPECT_THAT(doubles_of(step.coefficients_SE(1, 0)), Pointwise(DoubleNear(kTolerance), second_SE));
}

TEST(HandWorked, Sequence) {
  // Each token alone: 2 * its probability of its expert = 1.5, 1.5, 1.5, 1. c = .1 * 2 * 1 * (1/4) / 1 at its expert.
  expect_step(config_of({.kind = ScopeKind::Sequence}), 1.375, {.05, 0, .05, 0}, {0, .05, .05, 0});
}

TEST(HandWorked, SequencesOfThreeCrossMicroBatchesAndLeaveAShortGroup) {
  // First three: f = (2/3, 1/3), P = (1.75, 1.25) / 3: 2 * (3.5 + 1.25) / 9 = 19/18; last: f = (1, 0): 1. Weights 3/4, 1/4.
  const double c0 = 0.1 * 2 * (2.0 / 3) * 0.75 / 3;
  const double c1 = 0.1 * 2 * (1.0 / 3) * 0.75 / 3;
  const Scope scope{.kind = ScopeKind::Sequences, .num_sequences = 3};
  for (const GroupWeighting weighting : {GroupWeighting::Tokens, GroupWeighting::Mean}) {
    expect_step(config_of(scope, weighting), 0.75 * 19 / 18 + 0.25, {c0, c1, c0, c1}, {c0, c1, .05, 0});
  }
}

TEST(HandWorked, MicroBatch) {
  // f = (1, 0), P = (.75, .25): 1.5; f = (.5, .5): 1. c = .1 * 2 * f * .5 / 2.
  expect_step(config_of({.kind = ScopeKind::MicroBatch}), 1.25, {.05, 0, .05, 0}, {.025, .025, .025, .025});
  expect_step(config_of({.kind = ScopeKind::Ranks}), 1.25, {.05, 0, .05, 0}, {.025, .025, .025, .025});
}

TEST(HandWorked, PrefixIsTheBufferOfAlgorithmOne) {
  // The buffer holds (2, 0) after the first and (3, 1) after the second micro-batch; P = (.375, .625) there:
  // 2 * (.75 * .375 + .25 * .625) = .875.
  expect_step(config_of({.kind = ScopeKind::Prefix}), (1.5 + .875) / 2, {.05, 0, .05, 0}, {.0375, .0125, .0375, .0125});
}

TEST(HandWorked, OptimizerBatch) {
  // 2 * (.75 * .5625 + .25 * .4375) = 1.0625; c = .1 * 2 * (.75, .25) / 4.
  expect_step(config_of({.kind = ScopeKind::OptimizerBatch}), 1.0625, {.0375, .0125, .0375, .0125},
              {.0375, .0125, .0375, .0125});
}

TEST(HandWorked, PreviousStepAndEmaTakeFractionsFromBefore) {
  BalanceState state;
  state.previous_counts_LE = at::empty({1, 2}, at::kLong);
  state.previous_counts_LE.mutable_data_ptr<int64_t>()[0] = 1;
  state.previous_counts_LE.mutable_data_ptr<int64_t>()[1] = 4;
  state.ema_fractions_LE = state.previous_counts_LE.to(at::kDouble).div(5.0);
  // f = (.2, .8): 2 * (.2 * .5625 + .8 * .4375) = .925; c = .1 * 2 * (.2, .8) / 4.
  const std::vector<double> c = {.01, .04, .01, .04};
  expect_step(config_of({.kind = ScopeKind::PreviousStep}), .925, c, c, state);
  expect_step(config_of({.kind = ScopeKind::Ema, .decay = 0.75}), .925, c, c, state);

  StepBalance step =
      explicit_step(config_of({.kind = ScopeKind::Ema, .decay = 0.75}), four_tokens(), four_token_plan(), 2, state);
  step.finish(state);
  // .75 * (.2, .8) + .25 * (.75, .25)
  EXPECT_THAT(doubles_of(state.ema_fractions_LE), Pointwise(DoubleNear(kTolerance), std::vector<double>{.3375, .6625}));
  EXPECT_THAT(doubles_of(state.previous_counts_LE), testing::ElementsAre(3, 1));
}

TEST(HandWorked, MeanWeightingGivesShortGroupsTheSameVoice) {
  // Micro-batches of 3 and 1 tokens, values 1.5 and 1: mean 1.25, by tokens 1.375.
  const std::vector<std::vector<Token>> step = {{{0, {0}, {.75, .25}}, {0, {0}, {.75, .25}}, {0, {0}, {.75, .25}}},
                                                {{0, {1}, {.5, .5}}}};
  const StepPlan plan = explicit_plan({{3}, {1}});
  const Scope scope{.kind = ScopeKind::MicroBatch};
  EXPECT_NEAR(explicit_step(config_of(scope, GroupWeighting::Mean), step, plan, 2).values().lbl_L[0], 1.25, kTolerance);
  EXPECT_NEAR(explicit_step(config_of(scope, GroupWeighting::Tokens), step, plan, 2).values().lbl_L[0], 1.375, kTolerance);
}

TEST(HandWorked, ContractFactors) {
  // Micro-batches of 3, 0 and 1 tokens.
  StepPlan plan = explicit_plan({{2, 1}, {}, {1}});
  EXPECT_THAT(contract_factors(plan, {plan.step_tokens(), 1}), testing::ElementsAre(1, 1, 1));
  plan.contract.micro_batches = Averaging::Mean;  // the caller divides by 3, the empty one included
  EXPECT_THAT(contract_factors(plan, {plan.step_tokens(), 1}), testing::ElementsAre(3, 3, 3));
  plan.contract.micro_batches = Averaging::ByTokens;
  EXPECT_THAT(contract_factors(plan, {plan.step_tokens(), 1}), testing::ElementsAre(4.0 / 3, 4.0 / 3, 4));
}

TEST(HandWorked, ZLoss) {
  // Two tokens with logits (0, ln 3) and (0, 0): lse = ln 4 and ln 2; padding between them holds infinities.
  BalanceConfig config = config_of({.kind = ScopeKind::OptimizerBatch});
  config.coefficient = 0.0;
  config.z_coefficient = 0.5;
  const std::vector<Token> tokens = {{0, {1}, {.25, .75}}, {-1, {0}, {0, 1}}, {0, {0}, {.5, .5}}};
  StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 1}, explicit_plan({{2}}), {});
  ExplicitForward forward = explicit_forward(tokens, 2);
  double* logits = forward.routing.logits_TE.mutable_data_ptr<double>();
  logits[0] = 0.0;
  logits[1] = std::log(3.0);
  logits[2] = std::numeric_limits<double>::infinity();
  logits[4] = logits[5] = 0.0;
  const at::Tensor leaf_TE = forward.routing.logits_TE.set_requires_grad(true);
  const at::Tensor passed_TE = balance.through_logits(0, 0, leaf_TE, forward.segment_T);
  static_cast<void>(balance.through_probs(0, 0, forward.routing.probs_TE, forward.segment_T));
  balance.record(0, 0, forward.routing, forward.segment_T);
  balance.close_forward(0);
  balance.close_counting();
  const double lse4 = std::log(4.0);
  const double lse2 = std::log(2.0);
  EXPECT_NEAR(balance.values().z_loss_L.at(0), (lse4 * lse4 + lse2 * lse2) / 2, kTolerance);
  EXPECT_NEAR(balance.values().weighted_loss, 0.25 * (lse4 * lse4 + lse2 * lse2), kTolerance);

  passed_TE.mul(0.0).masked_fill(passed_TE.detach().isinf(), 0.0).sum().backward();
  // .5 * 2 * lse * softmax / 2
  const std::vector<double> expected = {.5 * lse4 * .25, .5 * lse4 * .75, 0, 0, .5 * lse2 * .5, .5 * lse2 * .5};
  const std::vector<double> grads = doubles_of(leaf_TE.grad());
  for (const size_t i : {0U, 1U, 4U, 5U}) EXPECT_NEAR(grads[i], expected[i], kTolerance);
  EXPECT_EQ(grads[2], 0.0);
  EXPECT_EQ(grads[3], 0.0);
}

// Whatever a padding row holds, zero times it would be NaN.
TEST(HandWorked, PaddingThatIsNotFiniteGetsNoGradient) {
  for (const std::string method : {"load_cv2", "variance"}) {
    BalanceConfig config = config_of({.kind = ScopeKind::OptimizerBatch});
    config.method = method;
    StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 1}, explicit_plan({{2}}), {});
    ExplicitForward forward = explicit_forward({{0, {1}, {.25, .75}}, {-1, {0}, {.5, .5}}, {0, {0}, {.5, .5}}}, 2);
    for (at::Tensor* scores : {&forward.routing.logits_TE, &forward.routing.probs_TE}) {
      scores->mutable_data_ptr<double>()[2] = std::numeric_limits<double>::infinity();
      scores->mutable_data_ptr<double>()[3] = std::nan("");
    }
    const at::Tensor logits_TE = forward.routing.logits_TE.set_requires_grad(true);
    const at::Tensor probs_TE = forward.routing.probs_TE.set_requires_grad(true);
    const at::Tensor passed_logits_TE = balance.through_logits(0, 0, logits_TE, forward.segment_T);
    const at::Tensor passed_probs_TE = balance.through_probs(0, 0, probs_TE, forward.segment_T);
    balance.record(0, 0, forward.routing, forward.segment_T);
    balance.close_forward(0);
    balance.close_counting();
    const at::Tensor own = at::zeros_like(logits_TE);
    passed_logits_TE.backward(own, /*retain_graph=*/true);
    passed_probs_TE.backward(own);
    double largest = 0.0;
    for (const at::Tensor& grad_TE : {logits_TE.grad(), probs_TE.grad()}) {
      EXPECT_EQ(grad_TE.select(0, 1).abs().max().item<double>(), 0.0) << method;
      largest = std::max(largest, grad_TE.abs().max().item<double>());
    }
    EXPECT_GT(largest, 0.0) << method;
  }
}

}  // namespace
}  // namespace switchyard::toy
