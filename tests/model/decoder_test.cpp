#include "switchyard/model/decoder.hpp"
#include "switchyard/model/weights.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/norm.h>
#include <ATen/ops/std.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/check.hpp"
#include "model/tiny.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

using testing::gradients_of;
using testing::max_difference;
using testing::padded_batch;
using testing::random_batch;
using testing::run_step;
using testing::tiny_config;

ModelConfig with_everything() {
  ModelConfig config = tiny_config();
  config.num_layers = 3;
  config.dense_layers = {1};
  config.shared_expert_width = 3;
  return config;
}

double loss_without_gradient(Decoder& model, const Batch& batch) {
  const c10::NoGradGuard no_grad;
  return model.loss_sum(model.forward(batch, {}), batch.targets_BS.reshape({-1})).item<double>();
}

// Central differences at a few elements of every parameter, embedding and norms included.
void expect_decoder_gradient(const ModelConfig& config) {
  constexpr double kStep = 1e-5;
  Decoder model(config, ComputeType::Float64, 1, 3);
  const Batch batch = padded_batch(2, 5, config.vocab_size, 1, 2);
  run_step(model, batch);
  Rng rng(5, "elements");
  for (Parameter* parameter : model.parameters()) {
    ASSERT_TRUE(parameter->grad.defined()) << parameter->name;
    EXPECT_GT(parameter->grad.abs().max().item<double>(), 0.0) << parameter->name;
    double* values = parameter->master.mutable_data_ptr<double>();
    for (int sample = 0; sample < 6; ++sample) {
      const auto element = static_cast<int64_t>(rng.below(static_cast<uint64_t>(parameter->master.numel())));
      const double original = values[element];
      values[element] = original + kStep;
      const double above = loss_without_gradient(model, batch);
      values[element] = original - kStep;
      const double below = loss_without_gradient(model, batch);
      values[element] = original;
      EXPECT_NEAR(parameter->grad.reshape({-1})[element].item<double>(), (above - below) / (2.0 * kStep), 2e-6)
          << parameter->name << " element " << element;
    }
  }
}

TEST(Decoder, GradientEqualsFiniteDifferences) { expect_decoder_gradient(with_everything()); }

TEST(Decoder, GradientEqualsFiniteDifferencesWithTiedEmbeddingsAndPlainWeights) {
  ModelConfig config = tiny_config();
  config.tied_embeddings = true;
  config.router.normalize = WeightNormalization::None;
  expect_decoder_gradient(config);
}

TEST(Decoder, LossOfZeroWeightsIsThatOfUniformGuessing) {
  ModelConfig config = tiny_config();
  config.init_deviation = 0.0;
  Decoder model(config, ComputeType::Float32, 1, 3);
  const Batch batch = random_batch(2, 5, config.vocab_size, 1);
  EXPECT_NEAR(run_step(model, batch), 10.0 * std::log(19.0), 1e-4);
}

TEST(Decoder, RecomputedLayersGiveTheSameBits) {
  for (const ComputeType type : {ComputeType::Float32, ComputeType::BFloat16, ComputeType::Float64}) {
    const ModelConfig config = with_everything();
    const Batch batch = padded_batch(3, 33, config.vocab_size, 1, 4);
    Decoder kept(config, type, 1, 3);
    Decoder again(config, type, 1, 3);
    ForwardContext context;
    const double loss = run_step(kept, batch, context);
    context.recompute = Recompute::Layers;
    int64_t observed = 0;
    context.observe = [&](int64_t moe_layer, const Routing&) { observed += moe_layer + 1; };
    EXPECT_EQ(run_step(again, batch, context), loss);
    EXPECT_EQ(observed, 3) << "two MoE layers, each seen once";
    const auto expected = gradients_of(kept), found = gradients_of(again);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_TRUE(found[i].tensor.defined()) << expected[i].name;
      EXPECT_TRUE(at::equal(found[i].tensor, expected[i].tensor)) << to_string(type) << " " << expected[i].name;
    }
  }
}

TEST(Decoder, JoinedMicroBatchesEqualSeparateOnes) {
  const ModelConfig config = with_everything();
  const Batch first = random_batch(2, 7, config.vocab_size, 1);
  const Batch second = padded_batch(1, 7, config.vocab_size, 2, 3);
  Decoder joined(config, ComputeType::Float64, 1, 3);
  Decoder separate(config, ComputeType::Float64, 1, 3);
  const double loss = run_step(joined, join_batches({first, second}));
  EXPECT_NEAR(loss, run_step(separate, first) + run_step(separate, second), 1e-11);
  const auto expected = gradients_of(joined), found = gradients_of(separate);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_LE(max_difference(found[i].tensor, expected[i].tensor), 1e-11) << expected[i].name;
  }
}

TEST(Decoder, PaddingChangesNothingBeforeIt) {
  const ModelConfig config = with_everything();
  Decoder model(config, ComputeType::Float64, 1, 3);
  const Batch whole = random_batch(1, 9, config.vocab_size, 1);
  const Batch padded = padded_batch(1, 9, config.vocab_size, 1, 4);
  ForwardContext context;
  int64_t slots = 0;
  context.observe = [&](int64_t, const Routing& routing) { slots += routing.token_A.numel(); };
  const at::Tensor expected = model.forward(whole, {}).narrow(0, 0, 5);
  EXPECT_LE(max_difference(model.forward(padded, context).narrow(0, 0, 5), expected), 1e-13);
  EXPECT_EQ(slots, 2 * 5 * 2) << "padding is not routed";
}

TEST(Decoder, SameSeedGivesTheSameBits) {
  const ModelConfig config = with_everything();
  const Batch batch = random_batch(2, 9, config.vocab_size, 1);
  Decoder first(config, ComputeType::BFloat16, 1, 3);
  Decoder second(config, ComputeType::BFloat16, 1, 3);
  EXPECT_EQ(run_step(first, batch), run_step(second, batch));
  const auto expected = gradients_of(first), found = gradients_of(second);
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(found[i].tensor, expected[i].tensor)) << expected[i].name;
}

TEST(Decoder, ArmsWithOtherRoutersStartFromTheSameOtherWeights) {
  ModelConfig config = tiny_config();
  Decoder first(config, ComputeType::Float32, 2, 3);
  config.router.name = "random";
  Decoder second(config, ComputeType::Float32, 2, 3);
  size_t shared = 0;
  const std::vector<NamedTensor> others = second.named_weights();
  for (const NamedTensor& weight : first.named_weights()) {
    for (const NamedTensor& other : others) {
      if (other.name != weight.name) continue;
      ++shared;
      EXPECT_TRUE(at::equal(weight.tensor, other.tensor)) << weight.name;
    }
  }
  EXPECT_EQ(shared, others.size());
  EXPECT_EQ(first.named_weights().size(), others.size() + 2) << "the two gates";
}

TEST(Decoder, InitialWeightsHaveTheAskedDeviation) {
  ModelConfig config = tiny_config();
  config.width = 64;
  config.init_deviation = 0.02;
  Decoder model(config, ComputeType::Float32, 1, 3);
  at::Tensor previous;
  for (const NamedTensor& weight : model.named_weights()) {
    if (weight.tensor.dim() == 1) {
      EXPECT_EQ(weight.tensor.min().item<double>(), 1.0) << weight.name;
    } else if (weight.name.find("gate.weight") == std::string::npos) {
      EXPECT_NEAR(weight.tensor.std().item<double>(), 0.02, 0.003) << weight.name;
      EXPECT_FALSE(previous.defined() && at::equal(previous, weight.tensor)) << weight.name;
      previous = weight.tensor;
    }
  }
}

TEST(Decoder, OnlyNormWeightsAreWithoutDecay) {
  Decoder model(with_everything(), ComputeType::Float32, 1, 3);
  for (const Parameter* parameter : model.parameters()) {
    const bool is_norm = parameter->name.find("norm") != std::string::npos;
    EXPECT_EQ(parameter->decay, is_norm ? Decay::No : Decay::Yes) << parameter->name;
    EXPECT_EQ(is_norm, parameter->master.dim() == 1) << parameter->name;
  }
}

TEST(Decoder, FrozenRouterGetsNoGradient) {
  ModelConfig config = tiny_config();
  config.router.name = "frozen_random";
  Decoder model(config, ComputeType::Float32, 1, 3);
  ForwardContext context;
  context.recompute = Recompute::Layers;
  run_step(model, random_batch(2, 9, config.vocab_size, 1), context);
  int frozen = 0;
  for (const Parameter* parameter : model.parameters()) {
    EXPECT_EQ(parameter->grad.defined(), parameter->training == Training::Trained) << parameter->name;
    frozen += parameter->training == Training::Frozen ? 1 : 0;
  }
  EXPECT_EQ(frozen, 2);
}

TEST(Decoder, Bfloat16IsCloseToSinglePrecision) {
  ModelConfig config = with_everything();
  config.init_deviation = 0.1;
  const Batch batch = random_batch(4, 33, config.vocab_size, 1);
  Decoder exact(config, ComputeType::Float32, 1, 3);
  Decoder rounded(config, ComputeType::BFloat16, 1, 3);
  EXPECT_NEAR(run_step(rounded, batch) / run_step(exact, batch), 1.0, 5e-3);
  const auto expected = gradients_of(exact), found = gradients_of(rounded);
  for (size_t i = 0; i < expected.size(); ++i) {
    // Of one backward: in the type it was computed in, no pass spent on a cast.
    EXPECT_EQ(found[i].tensor.scalar_type(), rounded.parameters()[i]->compute.scalar_type()) << expected[i].name;
    const double error = found[i].tensor.sub(expected[i].tensor).norm().item<double>();
    EXPECT_LE(error / expected[i].tensor.norm().item<double>(), 0.15) << expected[i].name;
  }
}

TEST(Decoder, GradientsOfSeveralBackwardsAddUpInSinglePrecision) {
  const ModelConfig config = with_everything();
  const Batch batch = random_batch(2, 17, config.vocab_size, 1);
  Decoder model(config, ComputeType::BFloat16, 1, 3);
  (void)run_step(model, batch);
  const auto once = gradients_of(model);
  for (int64_t repeat = 0; repeat < 2; ++repeat) (void)run_step(model, batch);
  const auto thrice = gradients_of(model);
  for (size_t i = 0; i < once.size(); ++i) {
    EXPECT_EQ(thrice[i].tensor.scalar_type(), at::kFloat) << once[i].name;
    EXPECT_TRUE(at::equal(thrice[i].tensor, once[i].tensor.to(at::kFloat).mul(3.0))) << once[i].name;
  }
}

TEST(Decoder, ComputesWithTheMastersThatWereSet) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::BFloat16, 1, 3);
  const Batch batch = random_batch(2, 9, config.vocab_size, 1);
  const double before = run_step(model, batch);
  std::vector<at::Tensor> given;
  for (Parameter* parameter : model.parameters()) {
    given.push_back(master_of(*parameter).mul(sizes_of(*parameter).size() > 1 ? 1.5 : 1.0));
    set_master(*parameter, given.back());
  }
  const double after = run_step(model, batch);
  EXPECT_GT(std::abs(after - before), 1e-2);
  int64_t in_halves = 0;
  for (size_t i = 0; i < given.size(); ++i) {
    const Parameter& parameter = *model.parameters()[i];
    EXPECT_TRUE(at::equal(master_of(parameter), given[i])) << parameter.name;
    const at::Tensor distance = parameter.compute.detach().to(at::kFloat).sub(given[i]).abs();
    EXPECT_TRUE(distance.le(given[i].abs().mul(0x1p-8)).all().item<bool>()) << parameter.name;
    in_halves += is_in_halves(parameter) ? 1 : 0;
  }
  EXPECT_EQ(in_halves, 2 * 4 + 1) << "QKV, output and both of the experts in each layer, and the head";
  EXPECT_THROW(set_master(*model.parameters()[0], given[1]), ShapeError);
}

TEST(Decoder, GradientsOfMicroBatchesAddUpUntilCleared) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float64, 1, 3);
  const Batch batch = random_batch(2, 9, config.vocab_size, 1);
  run_step(model, batch);
  const auto once = gradients_of(model);
  run_step(model, batch);
  const auto twice = gradients_of(model);
  for (size_t i = 0; i < once.size(); ++i) EXPECT_LE(max_difference(once[i].tensor.mul(2.0), twice[i].tensor), 1e-12);
  model.clear_gradients();
  for (const Parameter* parameter : model.parameters()) EXPECT_FALSE(parameter->grad.defined());
}

TEST(Decoder, ReplaysRecordedChoices) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float64, 1, 3);
  const Batch batch = random_batch(1, 6, config.vocab_size, 1);
  ForwardContext context;
  context.replay_ids_LTK.assign(2, at::tensor({3, 0}, at::kLong).expand({6, 2}).contiguous());
  std::vector<at::Tensor> seen;
  context.observe = [&](int64_t, const Routing& routing) { seen.push_back(routing.ids_TK); };
  (void)model.forward(batch, context);
  ASSERT_EQ(seen.size(), 2U);
  for (const at::Tensor& ids_TK : seen) EXPECT_TRUE(at::equal(ids_TK, context.replay_ids_LTK[0]));
  context.replay_ids_LTK.pop_back();
  EXPECT_THROW((void)model.forward(batch, context), ShapeError);
}

// The threads of a loop are not in their caller's inference mode by themselves.
TEST(Decoder, ComputesTheSameInInferenceModeOnTwoThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(2);
  for (const ComputeType type : {ComputeType::Float64, ComputeType::Float32, ComputeType::BFloat16}) {
    Decoder model(with_everything(), type, 1, 3);
    const Batch batch = random_batch(2, 40, model.config().vocab_size, 1);
    const at::Tensor expected = model.forward(batch, {});
    const c10::InferenceMode inference;
    EXPECT_LE(max_difference(model.forward(batch, {}), expected), type == ComputeType::BFloat16 ? 0.1 : 1e-5) << to_string(type);
  }
  at::set_num_threads(threads);
}

TEST(Decoder, TokenLossesAndLogitsAgreeWithTheLoss) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float64, 1, 3);
  const Batch batch = padded_batch(2, 6, config.vocab_size, 1, 2);
  const at::Tensor targets_T = batch.targets_BS.reshape({-1});
  const at::Tensor hidden_TD = model.forward(batch, {});
  const at::Tensor losses_T = model.token_losses(hidden_TD, targets_T);
  EXPECT_NEAR(losses_T.sum().item<double>(), model.loss_sum(hidden_TD, targets_T).item<double>(), 1e-11);
  const at::Tensor logits_V = model.logits_TV(hidden_TD)[3];
  const double expected = logits_V.logsumexp(0).item<double>() - logits_V[targets_T[3].item<int64_t>()].item<double>();
  EXPECT_NEAR(losses_T[3].item<double>(), expected, 1e-11);
}

TEST(Decoder, RejectsABatchThatDoesNotFit) {
  const ModelConfig config = tiny_config();
  Decoder model(config, ComputeType::Float32, 1, 3);
  Batch batch = random_batch(1, 6, config.vocab_size + 1, 1);
  batch.ids_BS.fill_(config.vocab_size);
  EXPECT_THROW((void)model.forward(batch, {}), ShapeError);
  batch.segment_T = batch.segment_T.narrow(0, 0, 3);
  EXPECT_THROW((void)model.forward(batch, {}), ShapeError);
  EXPECT_THROW((void)Decoder(config, ComputeType::Auto, 1, 3), UsageError);
}

}  // namespace
}  // namespace switchyard
