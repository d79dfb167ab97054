// One optimizer step in double: every order of forwards and backwards, and every packing, gives the same loss, counts and
// gradients; a routing that does not replay is found.

#include "switchyard/train/step.hpp"

#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/scope.hpp"
#include "switchyard/train/step_record.hpp"
#include "tests/train/fixtures.hpp"

namespace switchyard {
namespace {

constexpr uint64_t kSeed = 7;
constexpr double kTolerance = 1e-12;

Decoder make_model() { return {tiny_model(), ComputeType::Float64, /*num_domains=*/3, kSeed}; }

BalanceConfig make_balance(std::string_view scope) {
  BalanceConfig config;
  parse(scope, config.scope);
  config.coefficient = 0.7;
  config.z_coefficient = 0.05;
  return config;
}

ExecutionConfig execution_of(ExactOrder exact, ForwardPacking forward, Recompute recompute = Recompute::None) {
  ExecutionConfig execution;
  execution.exact = exact;
  execution.forward = forward;
  execution.recompute = recompute;
  return execution;
}

struct Outcome {
  StepResult result;
  std::vector<at::Tensor> gradients;
  BalanceState state;
};

Outcome run(const BalanceConfig& config, const ExecutionConfig& execution, BalanceState state = {},
            const std::vector<Batch>& batches = make_micro_batches(1), int64_t step = 0) {
  Decoder model = make_model();
  Outcome outcome;
  outcome.result = run_step(model, config, state, batches, execution, kSeed, step, Alone().ranks);
  for (const Parameter* parameter : model.parameters()) {
    SWITCHYARD_CHECK(parameter->grad.defined(), StateError, parameter->name, " has no gradient");
    outcome.gradients.push_back(parameter->grad.clone());
  }
  outcome.state = state;
  return outcome;
}

/// Counts and fractions of a step before, for the scopes that look back.
BalanceState earlier_state(const BalanceConfig& config) {
  return run(config, execution_of(ExactOrder::Retain, ForwardPacking::Together), {}, make_micro_batches(2)).state;
}

double largest_difference(const Outcome& a, const Outcome& b) {
  EXPECT_EQ(a.gradients.size(), b.gradients.size());
  double largest = 0.0;
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    largest = std::max(largest, a.gradients[i].sub(b.gradients[i]).abs().max().item<double>());
  }
  return largest;
}

void expect_same(const Outcome& a, const Outcome& b, const std::string& what) {
  SCOPED_TRACE(what);
  EXPECT_LT(largest_difference(a, b), kTolerance);
  EXPECT_NEAR(a.result.loss, b.result.loss, kTolerance);
  EXPECT_NEAR(a.result.balance.weighted_loss, b.result.balance.weighted_loss, kTolerance);
  EXPECT_THAT(a.result.balance.lbl_L, testing::Pointwise(testing::DoubleNear(kTolerance), b.result.balance.lbl_L));
  EXPECT_THAT(a.result.balance.z_loss_L, testing::Pointwise(testing::DoubleNear(kTolerance), b.result.balance.z_loss_L));
  EXPECT_TRUE(at::equal(a.result.step_counts_LE, b.result.step_counts_LE));
  EXPECT_TRUE(at::equal(a.result.micro_batch_counts_MLE, b.result.micro_batch_counts_MLE));
  EXPECT_TRUE(at::equal(a.state.previous_counts_LE, b.state.previous_counts_LE));
}

const std::vector<std::string> kScopes = {"sequence", "sequences(3)", "micro_batch", "ranks", "prefix", "optimizer_batch",
                                          "previous_step", "ema(0.9)"};

TEST(Step, EveryScopeGivesTheSameSeparateAndTogether) {
  for (const std::string& scope : kScopes) {
    const BalanceConfig config = make_balance(scope);
    const BalanceState state = earlier_state(config);
    const Outcome separate = run(config, execution_of(ExactOrder::Retain, ForwardPacking::Separate), state);
    const Outcome together = run(config, execution_of(ExactOrder::Retain, ForwardPacking::Together), state);
    expect_same(separate, together, scope);
    EXPECT_EQ(separate.result.tokens, 8 + 5 + 8 + 0 + 3 + 8 + 6);
    EXPECT_EQ(separate.result.targets, 7 + 4 + 7 + 0 + 2 + 7 + 5);
    EXPECT_EQ(separate.result.step_counts_LE.sum().item<int64_t>(), separate.result.tokens * 2 * 2);
  }
}

TEST(Step, RetainPrepassAndRecomputeAgree) {
  for (const std::string& scope : kScopes) {
    const BalanceConfig config = make_balance(scope);
    const BalanceState state = earlier_state(config);
    const Outcome retain = run(config, execution_of(ExactOrder::Retain, ForwardPacking::Separate), state);
    expect_same(retain, run(config, execution_of(ExactOrder::Prepass, ForwardPacking::Separate), state), scope + " prepass");
    expect_same(retain, run(config, execution_of(ExactOrder::Recompute, ForwardPacking::Separate, Recompute::Layers), state),
                scope + " recompute");
    expect_same(retain, run(config, execution_of(ExactOrder::Prepass, ForwardPacking::Separate, Recompute::Layers), state),
                scope + " prepass with recomputed layers");
  }
}

TEST(Step, RecomputedLayersChangeNoBit) {
  for (const ForwardPacking forward : {ForwardPacking::Separate, ForwardPacking::Together}) {
    const BalanceConfig config = make_balance("optimizer_batch");
    const Outcome plain = run(config, execution_of(ExactOrder::Retain, forward));
    const Outcome recomputed = run(config, execution_of(ExactOrder::Retain, forward, Recompute::Layers));
    for (size_t i = 0; i < plain.gradients.size(); ++i) EXPECT_TRUE(at::equal(plain.gradients[i], recomputed.gradients[i]));
    EXPECT_EQ(plain.result.loss, recomputed.result.loss);
  }
}

// The scopes differ, else the tests above would pass with any one of them.
TEST(Step, ScopesGiveDifferentGradients) {
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Separate);
  const Outcome exact = run(make_balance("optimizer_batch"), execution);
  for (const std::string scope : {"sequence", "micro_batch", "prefix", "sequences(2)"}) {
    EXPECT_GT(largest_difference(exact, run(make_balance(scope), execution)), 1e-6) << scope;
  }
}

// A micro-batch alone is an optimizer batch of its own.
TEST(Step, MicroBatchOfOneIsTheOptimizerBatch) {
  const std::vector<Batch> one = {make_micro_batches(1)[0]};
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Separate);
  expect_same(run(make_balance("micro_batch"), execution, {}, one), run(make_balance("optimizer_batch"), execution, {}, one),
              "one micro-batch");
}

/// Gradient of the step's cross-entropy without balancing, by differences of the loss.
TEST(Step, GradientIsThatOfTheMeanOverAllTargets) {
  BalanceConfig config = make_balance("optimizer_batch");
  config.coefficient = 0.0;
  config.z_coefficient = 0.0;
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Separate);
  const Outcome outcome = run(config, execution);
  const auto loss_at = [&](double shift) {
    Decoder model = make_model();
    Parameter* head = model.parameters().back();
    head->master.view({-1})[3] += shift;
    BalanceState state;
    return run_step(model, config, state, make_micro_batches(1), execution, kSeed, 0, Alone().ranks).loss;
  };
  const double difference = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5;
  EXPECT_NEAR(outcome.gradients.back().view({-1})[3].item<double>(), difference, 1e-8);
}

TEST(Step, StartsFromNoGradient) {
  Decoder model = make_model();
  const BalanceConfig config = make_balance("micro_batch");
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Separate);
  BalanceState state;
  (void)run_step(model, config, state, make_micro_batches(1), execution, kSeed, 0, Alone().ranks);
  const at::Tensor first = model.parameters().back()->grad.clone();
  (void)run_step(model, config, state, make_micro_batches(1), execution, kSeed, 1, Alone().ranks);
  EXPECT_TRUE(at::equal(model.parameters().back()->grad, first));
}

TEST(Step, ScopesThatLookBackSayThatTheyLackHistory) {
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Together);
  for (const std::string scope : {"previous_step", "ema(0.9)"}) {
    const Outcome first = run(make_balance(scope), execution);
    EXPECT_TRUE(first.result.lacks_history) << scope;
    EXPECT_TRUE(first.result.balance.lbl_L.empty()) << scope;
    const Outcome second = run(make_balance(scope), execution, first.state, make_micro_batches(1), 1);
    EXPECT_FALSE(second.result.lacks_history) << scope;
    EXPECT_EQ(second.result.balance.lbl_L.size(), 2U) << scope;
  }
  EXPECT_FALSE(run(make_balance("optimizer_batch"), execution).result.lacks_history);
}

TEST(Step, SimBalOverLayersIsAveragedOrAdded) {
  std::vector<at::Tensor> gradients;
  for (const LayerReduction layers : {LayerReduction::Mean, LayerReduction::Sum}) {
    BalanceConfig config = make_balance("optimizer_batch");
    config.coefficient = config.z_coefficient = 0.0;
    config.simbal_coefficient = 0.3;
    config.layers = layers;
    Decoder model = make_model();
    StepResult result;
    add_parameter_losses(model, config, result);
    ASSERT_EQ(result.simbal_L.size(), 2U);
    const double share = layers == LayerReduction::Mean ? 0.5 : 1.0;
    EXPECT_NEAR(result.balance.weighted_loss, 0.3 * share * (result.simbal_L[0] + result.simbal_L[1]), kTolerance);
    gradients.push_back(model.router_weights()[0]->grad.clone());
  }
  EXPECT_LT(gradients[0].mul(2.0).sub(gradients[1]).abs().max().item<double>(), kTolerance);
  EXPECT_GT(gradients[0].abs().max().item<double>(), 0.1);
}

TEST(Step, MicroBatchesWithoutTokensHaveNoMaxVio) {
  StepResult result;
  result.step_counts_LE = at::tensor({6, 2}, at::kLong).view({1, 2});
  result.micro_batch_counts_MLE = at::tensor({6, 2, 0, 0}, at::kLong).view({2, 1, 2});
  const StepRecord record = make_step_record(result, {});
  EXPECT_DOUBLE_EQ(record.max_vio_step, 0.5);
  EXPECT_DOUBLE_EQ(record.max_vio_micro_batch, 0.5);
}

/// Moves the router's weights between the pre-pass and the second forward, so that it chooses other experts.
ForwardHook disturb_router(Decoder& model) {
  return [&model](RoutingPhase phase, int64_t forward) {
    if (phase != RoutingPhase::Train || forward != 0) return;
    for (Parameter* parameter : model.parameters()) {
      if (parameter->name == "model.layers.1.mlp.gate.weight") parameter->master.copy_(parameter->master.flip(0));
    }
  };
}

TEST(Step, RoutingThatDoesNotReplayIsAnError) {
  Decoder model = make_model();
  const ExecutionConfig execution = execution_of(ExactOrder::Prepass, ForwardPacking::Separate);
  BalanceState state;
  EXPECT_THROW((void)run_step(model, make_balance("optimizer_batch"), state, make_micro_batches(1), execution, kSeed, 0,
                              Alone().ranks, disturb_router(model)),
               StateError);
  EXPECT_FALSE(state.previous_counts_LE.defined());
}

TEST(Step, RecordedChoicesAreReplayedOnRequest) {
  Decoder model = make_model();
  ExecutionConfig execution = execution_of(ExactOrder::Prepass, ForwardPacking::Separate);
  execution.on_replay_mismatch = OnReplayMismatch::Replay;
  const BalanceConfig config = make_balance("optimizer_batch");
  BalanceState state;
  const StepResult calm = run_step(model, config, state, make_micro_batches(1), execution, kSeed, 0, Alone().ranks);
  EXPECT_EQ(calm.replay_differences, 0);

  state = {};
  const StepResult disturbed =
      run_step(model, config, state, make_micro_batches(1), execution, kSeed, 0, Alone().ranks, disturb_router(model));
  EXPECT_GT(disturbed.replay_differences, 0);
  EXPECT_LE(disturbed.replay_differences, disturbed.tokens);  // only one layer was moved
  EXPECT_TRUE(at::equal(disturbed.step_counts_LE, calm.step_counts_LE));
}

// A router that has no preference yet: all scores are equal, and the same experts are chosen again.
TEST(Step, EqualScoresAreNoOtherChoices) {
  Decoder model = make_model();
  for (Parameter* weight : model.router_weights()) weight->master.zero_();
  ExecutionConfig execution = execution_of(ExactOrder::Prepass, ForwardPacking::Separate);
  execution.on_replay_mismatch = OnReplayMismatch::Replay;
  BalanceState state;
  const StepResult result =
      run_step(model, make_balance("optimizer_batch"), state, make_micro_batches(1), execution, kSeed, 0, Alone().ranks);
  EXPECT_EQ(result.replay_differences, 0);
}

// What replays gives the same gradients as choosing again.
TEST(Step, ReplayOfEqualChoicesChangesNothing) {
  ExecutionConfig execution = execution_of(ExactOrder::Prepass, ForwardPacking::Separate);
  const Outcome chosen = run(make_balance("optimizer_batch"), execution);
  execution.on_replay_mismatch = OnReplayMismatch::Replay;
  expect_same(chosen, run(make_balance("optimizer_batch"), execution), "replay");
}

TEST(Step, WithoutBalancingCountsAreStillTaken) {
  BalanceConfig config = make_balance("optimizer_batch");
  config.method = "none";
  config.z_coefficient = 0.0;
  const Outcome outcome = run(config, execution_of(ExactOrder::Retain, ForwardPacking::Together));
  EXPECT_EQ(outcome.result.step_counts_LE.sum().item<int64_t>(), outcome.result.tokens * 2 * 2);
  EXPECT_TRUE(outcome.result.balance.lbl_L.empty());
  EXPECT_EQ(outcome.result.balance.weighted_loss, 0.0);
}

TEST(Step, RefusesStepsWithoutTargets) {
  Decoder model = make_model();
  BalanceState state;
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Together);
  std::vector<Batch> empty = {make_micro_batches(1)[2]};
  empty[0].segment_micro_batch = {0};
  EXPECT_THROW((void)run_step(model, make_balance("micro_batch"), state, empty, execution, kSeed, 0, Alone().ranks), DataError);
  EXPECT_THROW((void)run_step(model, make_balance("micro_batch"), state, {}, execution, kSeed, 0, Alone().ranks), UsageError);
}

TEST(Step, NamesALossThatIsNotFinite) {
  Decoder model = make_model();
  model.parameters().back()->master.fill_(std::numeric_limits<double>::infinity());
  BalanceState state;
  const ExecutionConfig execution = execution_of(ExactOrder::Retain, ForwardPacking::Together);
  try {
    (void)run_step(model, make_balance("micro_batch"), state, make_micro_batches(1), execution, kSeed, 4, Alone().ranks);
    FAIL() << "an infinite weight was taken";
  } catch (const StateError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("loss of step 4"));
  }
}

}  // namespace
}  // namespace switchyard
