// Losses that take no statistics of other tokens: orthogonality of expert outputs, SimBal on the router's weights.

#include <ATen/ops/eye.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "explicit_routing.hpp"
#include "switchyard/balance/orthogonality.hpp"
#include "switchyard/balance/parameter_loss.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard::toy {
namespace {

// Outputs (1, 0), (1, 1): <a, b> = 1, so 1/1 + 1/2 (epsilon 1e-6). The second token's are orthogonal.
TEST(Orthogonality, ByHand) {
  const at::Tensor outputs_TKD = at::tensor({1.0, 0.0, 1.0, 1.0, 2.0, 0.0, 0.0, 3.0}).view({2, 2, 2});
  const at::Tensor loss_T = orthogonality_loss(outputs_TKD);
  EXPECT_NEAR(loss_T.const_data_ptr<double>()[0], 1.5, 1e-5);
  EXPECT_NEAR(loss_T.const_data_ptr<double>()[1], 0.0, 1e-5);
}

// Large outputs at nearly right angles: what is left of a token's own squares after they are taken away would be larger than the loss.
TEST(Orthogonality, KeepsSmallLossesOfLargeOutputsInFloat) {
  Rng rng(1, "outputs");
  const at::Tensor noise_TKD = rng.normal_tensor({64, 4, 4}, 1e-2).to(at::kDouble);
  const at::Tensor outputs_TKD = noise_TKD.add(at::eye(4, at::kDouble), 100.0).to(at::kFloat);
  const at::Tensor loss_T = orthogonality_loss(outputs_TKD), expected_T = orthogonality_loss(outputs_TKD.to(at::kDouble));
  EXPECT_GT(loss_T.min().item<float>(), 0.0F);
  EXPECT_LT(loss_T.sub(expected_T).div(expected_T).abs().max().item<double>(), 1e-3);
}

// Injected against added to the loss, with a padding token whose outputs are not finite and a second run that must not count.
TEST(Orthogonality, EntersAsIfItWereAddedToTheLoss) {
  Rng rng(1, "outputs");
  const at::Tensor outputs_TKD = rng.normal_tensor({4, 2, 3}, 1.0).to(at::kDouble).set_requires_grad(true);
  const std::vector<Token> tokens = {{0, {0, 1}, {.6, .4}}, {0, {1, 0}, {.4, .6}}, {1, {0, 1}, {.5, .5}}, {-1, {0, 1}, {.5, .5}}};
  const ExplicitForward forward = explicit_forward(tokens, 2);
  const BalanceConfig config{.method = "none", .orthogonality_coefficient = 0.3, .layers = LayerReduction::Sum};
  StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 2}, explicit_plan({{2, 1}}), {});
  at::Tensor loss_T = orthogonality_loss(outputs_TKD);
  record_explicit(balance, 0, 0, forward);
  EXPECT_THROW(balance.close_forward(0), StateError);  // asked for, and nothing passed through
  const at::Tensor out_TD = balance.through_outputs(0, 0, outputs_TKD.sum(1), loss_T, forward.segment_T);
  static_cast<void>(balance.through_outputs(0, 0, outputs_TKD.sum(1), loss_T.mul(7.0), forward.segment_T));
  balance.close_forward(0);
  balance.close_counting();
  const at::Tensor valid_loss = loss_T.narrow(0, 0, 3).sum().div(3.0);
  EXPECT_NEAR(balance.values().orthogonality_L.at(0), valid_loss.item<double>(), 1e-12);
  EXPECT_NEAR(balance.values().weighted_loss, 0.3 * valid_loss.item<double>(), 1e-12);

  const at::Tensor own = out_TD.square().sum();
  const at::Tensor injected = torch::autograd::grad({own}, {outputs_TKD}, {}, /*retain_graph=*/true)[0];
  const at::Tensor plain = outputs_TKD.sum(1).square().sum().add(valid_loss.mul(0.3));
  const at::Tensor expected = torch::autograd::grad({plain}, {outputs_TKD})[0];
  EXPECT_LT(injected.sub(expected).abs().max().item<double>(), 1e-12);
}

TEST(Orthogonality, BesideTheGraphIsAnError) {
  const BalanceConfig config{.method = "none", .orthogonality_coefficient = 0.3};
  StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 2}, explicit_plan({{1}}), {});
  const ExplicitForward forward = explicit_forward({{0, {0, 1}, {.6, .4}}}, 2);
  record_explicit(balance, 0, 0, forward);
  const at::Tensor outputs_TKD = at::eye(2, at::kDouble).unsqueeze(0).set_requires_grad(true);
  const at::Tensor out_TD = outputs_TKD.sum(1);
  static_cast<void>(balance.through_outputs(0, 0, out_TD, orthogonality_loss(outputs_TKD), forward.segment_T));
  balance.close_forward(0);
  balance.close_counting();
  out_TD.sum().backward();
  BalanceState state;
  expect_message<StateError>([&] { balance.finish(state); }, "no backward came through what through_outputs()");
}

TEST(Orthogonality, ThatIsNotANumberIsToldAsSuch) {
  const BalanceConfig config{.method = "none", .orthogonality_coefficient = 0.3};
  StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 2}, explicit_plan({{1}}), {});
  const ExplicitForward forward = explicit_forward({{0, {0, 1}, {.6, .4}}}, 2);
  record_explicit(balance, 0, 0, forward);
  static_cast<void>(balance.through_outputs(0, 0, at::zeros({1, 3}, at::kDouble), at::tensor({std::nan("")}), forward.segment_T));
  balance.close_forward(0);
  balance.close_counting();
  EXPECT_TRUE(std::isnan(balance.values().orthogonality_L.at(0)));
  EXPECT_TRUE(std::isnan(balance.values().weighted_loss));
}

// Rows (1, 0), (1, 1): Gram minus identity is ((0, 1), (1, 1)), so 3.
TEST(SimBal, ByHandAndAgainstAutograd) {
  EXPECT_DOUBLE_EQ(simbal_loss(at::tensor({1.0, 0.0, 1.0, 1.0}).view({2, 2})).value, 3.0);
  EXPECT_DOUBLE_EQ(simbal_loss(at::eye(3, at::kDouble)).value, 0.0);
  Rng rng(2, "router");
  const at::Tensor weight_ED = rng.normal_tensor({4, 6}, 1.0).to(at::kDouble).set_requires_grad(true);
  const at::Tensor loss = at::mm(weight_ED, weight_ED.t()).sub(at::eye(4, at::kDouble)).abs().sum();
  const at::Tensor expected = torch::autograd::grad({loss}, {weight_ED})[0];
  const ParameterLoss given = simbal_loss(weight_ED);
  EXPECT_NEAR(given.value, loss.item<double>(), 1e-12);
  EXPECT_LT(given.gradient_ED.sub(expected).abs().max().item<double>(), 1e-12);
}

}  // namespace
}  // namespace switchyard::toy
