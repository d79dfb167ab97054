// Gradients through layers that run again in backward, however they are asked for.
#include "switchyard/model/checkpointed_layer.hpp"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

#include "kernels/check.hpp"
#include "model/tiny.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/kernels/cross_entropy.hpp"

namespace switchyard {
namespace {

using testing::max_difference;
using testing::random_batch;
using testing::random_tensor;
using testing::tiny_config;

using HeadLoss = std::function<at::Tensor(const at::Tensor& hidden_TD)>;

// The head and the loss within a recomputed region, beside another use of the same hidden states.
class RecomputedHead : public ::testing::Test {
 protected:
  [[nodiscard]] HeadLoss again(const HeadLoss& loss) const {
    return [=, this](const at::Tensor& hidden) { return run_checkpointed(hidden, {head_VD_}, loss, loss); };
  }

  void expect_same_gradients(const std::function<std::vector<at::Tensor>(const at::Tensor& loss)>& differentiate) {
    const std::vector<at::Tensor> expected = differentiate(with_squares(plain_));
    const std::vector<at::Tensor> once = differentiate(with_squares(again(plain_)));
    const std::vector<at::Tensor> twice = differentiate(with_squares(again(again(plain_))));
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_LE(max_difference(once[i], expected[i]), 1e-12) << "recomputed, gradient " << i;
      EXPECT_LE(max_difference(twice[i], expected[i]), 1e-12) << "recomputed within a recomputed region, gradient " << i;
    }
  }

  [[nodiscard]] at::Tensor with_squares(const HeadLoss& loss) const { return loss(hidden_TD_).add(hidden_TD_.square().sum()); }

  at::Tensor hidden_TD_ = random_tensor({5, 4}, 1).set_requires_grad(true);
  at::Tensor head_VD_ = random_tensor({9, 4}, 2).set_requires_grad(true);
  HeadLoss plain_ = [this](const at::Tensor& hidden) {
    return linear_cross_entropy(hidden, head_VD_, at::zeros({hidden.size(0)}, at::kLong), -100);
  };
};

TEST_F(RecomputedHead, KeepsTheGradientsThatAreAskedForByName) {
  expect_same_gradients([this](const at::Tensor& loss) { return torch::autograd::grad({loss}, {hidden_TD_}); });
  expect_same_gradients([this](const at::Tensor& loss) { return torch::autograd::grad({loss}, {hidden_TD_, head_VD_}); });
}

TEST_F(RecomputedHead, KeepsTheGradientsOfABackward) {
  expect_same_gradients([this](const at::Tensor& loss) {
    for (at::Tensor* leaf : {&hidden_TD_, &head_VD_}) leaf->mutable_grad().reset();
    loss.backward();
    return std::vector{hidden_TD_.grad().clone(), head_VD_.grad().clone()};
  });
}

TEST_F(RecomputedHead, RefusesSecondDerivatives) {
  const auto square = [](const at::Tensor& hidden) { return hidden.square().sum(); };
  const at::Tensor loss = run_checkpointed(hidden_TD_, {}, square, square);
  EXPECT_THROW((void)torch::autograd::grad({loss}, {hidden_TD_}, {}, std::nullopt, /*create_graph=*/true), UsageError);
}

TEST(RecomputedLayers, GiveTheSameGradientsByNameAsByBackward) {
  const Batch batch = random_batch(2, 9, tiny_config().vocab_size, 1);
  Decoder model(tiny_config(), ComputeType::Float64, 1, 3);
  std::vector<at::Tensor> weights;
  for (const Parameter* parameter : model.parameters()) weights.push_back(parameter->compute);
  const auto gradients = [&](Recompute recompute) {
    ForwardContext context;
    context.recompute = recompute;
    return torch::autograd::grad({model.loss_sum(model.forward(batch, context), batch.targets_BS.reshape({-1}))}, weights);
  };
  const std::vector<at::Tensor> expected = gradients(Recompute::None), found = gradients(Recompute::Layers);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_LE(max_difference(found[i], expected[i]), 1e-12) << i;
}

}  // namespace
}  // namespace switchyard
