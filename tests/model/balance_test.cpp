// The decoder and the balance ledger together: coefficients filled in after the forward reach the router.
#include <ATen/ops/equal.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "kernels/check.hpp"
#include "model/tiny.hpp"
#include "switchyard/balance/step_balance.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using testing::gradients_of;
using testing::max_difference;
using testing::random_batch;
using testing::tiny_config;

constexpr int64_t kPositions = 8;

StepBalance make_balance(const ModelConfig& config, const std::vector<Batch>& forwards, double coefficient) {
  BalanceConfig balance;
  balance.coefficient = coefficient;
  balance.scope.kind = ScopeKind::OptimizerBatch;
  StepPlan plan;
  plan.forward_begin = {0};
  for (size_t f = 0; f < forwards.size(); ++f) {
    for (const int64_t tokens : forwards[f].segment_tokens) {
      plan.segment_tokens.push_back(tokens);
      plan.segment_micro_batch.push_back(static_cast<int64_t>(f));
    }
    plan.forward_begin.push_back(static_cast<int64_t>(plan.segment_tokens.size()));
  }
  const BalanceShape shape{config.num_layers, config.num_experts, config.num_chosen};
  return StepBalance(balance, shape, plan, BalanceState{});
}

enum class HowExact { Retain, Prepass, Recompute };

// A step of several forwards under the exact scope; returns the gradients.
std::vector<NamedTensor> exact_step(const std::vector<Batch>& forwards, double coefficient, HowExact how) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float64, 1, 3);
  StepBalance balance = make_balance(config, forwards, coefficient);
  ForwardContext context;
  context.balance = &balance;
  context.recompute = how == HowExact::Recompute ? Recompute::Layers : Recompute::None;
  const auto forward = [&](size_t f) {
    context.forward = static_cast<int64_t>(f);
    context.first_token = static_cast<int64_t>(f) * kPositions;
    return model.loss_sum(model.forward(forwards[f], context), forwards[f].targets_BS.reshape({-1}));
  };
  if (how == HowExact::Prepass) {
    const c10::NoGradGuard no_grad;
    context.phase = RoutingPhase::Count;
    for (size_t f = 0; f < forwards.size(); ++f) {
      (void)forward(f);
      balance.close_forward(static_cast<int64_t>(f));
    }
    balance.close_counting();
    context.phase = RoutingPhase::Train;
  }
  std::vector<at::Tensor> losses;
  for (size_t f = 0; f < forwards.size(); ++f) {
    losses.push_back(forward(f));
    if (how != HowExact::Prepass) balance.close_forward(static_cast<int64_t>(f));
  }
  if (how != HowExact::Prepass) balance.close_counting();
  for (const at::Tensor& loss : losses) loss.backward();
  model.collect_gradients();
  return gradients_of(model);
}

void expect_equal(const std::vector<NamedTensor>& left, const std::vector<NamedTensor>& right, double tolerance) {
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_LE(max_difference(left[i].tensor, right[i].tensor), tolerance) << left[i].name;
  }
}

std::vector<Batch> three_forwards() {
  return {random_batch(1, kPositions, 19, 1), random_batch(2, kPositions, 19, 2), random_batch(1, kPositions, 19, 3)};
}

TEST(BalancedDecoder, TheThreeWaysToTheExactScopeAgreeWithOneForward) {
  const std::vector<Batch> forwards = three_forwards();
  const auto retained = exact_step(forwards, 0.5, HowExact::Retain);
  expect_equal(exact_step(forwards, 0.5, HowExact::Prepass), retained, 1e-12);
  expect_equal(exact_step(forwards, 0.5, HowExact::Recompute), retained, 1e-12);
  expect_equal(exact_step({join_batches(forwards)}, 0.5, HowExact::Retain), retained, 1e-11);
}

TEST(BalancedDecoder, TheLossReachesTheRouterAndWhatLiesBeforeIt) {
  const auto without = exact_step(three_forwards(), 0.0, HowExact::Retain);
  const auto with = exact_step(three_forwards(), 0.5, HowExact::Retain);
  for (size_t i = 0; i < with.size(); ++i) {
    const double difference = max_difference(with[i].tensor, without[i].tensor);
    if (with[i].name == "lm_head.weight" || with[i].name == "model.norm.weight") {
      EXPECT_EQ(difference, 0.0) << with[i].name;
    } else if (!with[i].name.starts_with("model.layers.1.mlp.experts.")) {
      EXPECT_GT(difference, 1e-7) << with[i].name;
    }
  }
}

TEST(BalancedDecoder, ARoutingThatDoesNotReplayIsAnError) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float64, 1, 3);
  const std::vector<Batch> forwards = {random_batch(2, kPositions, 19, 1)};
  StepBalance balance = make_balance(config, forwards, 0.5);
  ForwardContext context;
  context.balance = &balance;
  context.recompute = Recompute::Layers;
  const at::Tensor loss = model.loss_sum(model.forward(forwards[0], context), forwards[0].targets_BS.reshape({-1}));
  balance.close_forward(0);
  balance.close_counting();
  for (Parameter* parameter : model.parameters()) {
    // Unseen by autograd, which would complain first.
    if (parameter->name == "model.layers.1.mlp.gate.weight") parameter->master.variable_data().neg_();
  }
  EXPECT_THROW(loss.backward(), StateError);
}

}  // namespace
}  // namespace switchyard
