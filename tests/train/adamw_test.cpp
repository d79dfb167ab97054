// AdamW against a scalar reference in double, decay groups, clipping, and its saved state.

#include "switchyard/train/adamw.hpp"

#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNumWeights = 37;  // odd, so that vectorised code has a remainder

Parameter make_parameter(const std::string& name, at::ScalarType type, Decay decay, Rng& rng) {
  Parameter parameter;
  parameter.name = name;
  parameter.master = rng.normal_tensor({kNumWeights}, 1.0).to(type);
  parameter.decay = decay;
  return parameter;
}

/// The equations of the header, one number at a time.
struct ScalarAdamW {
  double weight, first = 0.0, second = 0.0;

  void step(const OptimizerConfig& config, double rate, double decay, double gradient, int64_t t) {
    first = config.beta1 * first + (1.0 - config.beta1) * gradient;
    second = config.beta2 * second + (1.0 - config.beta2) * gradient * gradient;
    const double unbiased_first = first / (1.0 - std::pow(config.beta1, t));
    const double unbiased_second = second / (1.0 - std::pow(config.beta2, t));
    weight = weight * (1.0 - rate * decay) - rate * unbiased_first / (std::sqrt(unbiased_second) + config.epsilon);
  }
};

std::vector<ScalarAdamW> make_reference(const Parameter& parameter) {
  std::vector<ScalarAdamW> reference;
  for (int64_t i = 0; i < kNumWeights; ++i) reference.push_back({parameter.master[i].item<double>()});
  return reference;
}

/// Largest difference of the weights after 25 steps.
double difference_from_reference(at::ScalarType type, Decay decay) {
  Rng rng(1, "adamw_test");
  OptimizerConfig config;
  Parameter parameter = make_parameter("w", type, decay, rng);
  auto reference = make_reference(parameter);
  AdamW optimizer({&parameter}, config);
  const double weight_decay = decay == Decay::Yes ? config.weight_decay : 0.0;
  for (int64_t t = 1; t <= 25; ++t) {
    parameter.grad = rng.normal_tensor({kNumWeights}, 0.1).to(type);
    const double rate = 0.01 * static_cast<double>(t);
    optimizer.step(rate);
    for (int64_t i = 0; i < kNumWeights; ++i) {
      reference[static_cast<size_t>(i)].step(config, rate, weight_decay, parameter.grad[i].item<double>(), t);
    }
  }
  double largest = 0.0;
  for (int64_t i = 0; i < kNumWeights; ++i) {
    largest = std::max(largest, std::abs(parameter.master[i].item<double>() - reference[static_cast<size_t>(i)].weight));
  }
  return largest;
}

TEST(AdamW, FirstStepByHand) {
  // Bias correction makes the first step lr * g / (|g| + eps) whatever g is; decay takes lr * wd * w before.
  Parameter parameter;
  parameter.name = "w";
  parameter.master = at::tensor({2.0, -1.0}, at::kDouble);
  parameter.grad = at::tensor({0.5, -4.0}, at::kDouble);
  OptimizerConfig config;
  config.weight_decay = 0.5;
  config.epsilon = 1e-12;
  AdamW({&parameter}, config).step(0.1);
  EXPECT_NEAR(parameter.master[0].item<double>(), 2.0 * 0.95 - 0.1, 1e-11);
  EXPECT_NEAR(parameter.master[1].item<double>(), -1.0 * 0.95 + 0.1, 1e-11);
}

TEST(AdamW, MatchesTheScalarReference) {
  EXPECT_LT(difference_from_reference(at::kDouble, Decay::Yes), 1e-13);
  EXPECT_LT(difference_from_reference(at::kDouble, Decay::No), 1e-13);
  EXPECT_LT(difference_from_reference(at::kFloat, Decay::Yes), 5e-6);
  EXPECT_LT(difference_from_reference(at::kFloat, Decay::No), 5e-6);
}

TEST(AdamW, LeavesFrozenParametersAlone) {
  Rng rng(2, "adamw_test");
  Parameter frozen = make_parameter("frozen", at::kFloat, Decay::Yes, rng);
  frozen.training = Training::Frozen;
  frozen.grad = rng.normal_tensor({kNumWeights}, 1.0);
  const at::Tensor before = frozen.master.clone();
  AdamW optimizer({&frozen}, OptimizerConfig());
  optimizer.step(0.1);
  EXPECT_TRUE(at::equal(frozen.master, before));
  EXPECT_TRUE(optimizer.moments().empty());
}

TEST(AdamW, TakesAnUndefinedGradientAsZero) {
  Rng rng(3, "adamw_test");
  Parameter parameter = make_parameter("w", at::kDouble, Decay::Yes, rng);
  const at::Tensor before = parameter.master.clone();
  OptimizerConfig config;
  AdamW({&parameter}, config).step(0.5);
  EXPECT_LT(parameter.master.sub(before.mul(1.0 - 0.5 * config.weight_decay)).abs().max().item<double>(), 1e-15);
}

TEST(AdamW, RestoredStateContinuesToTheSameBits) {
  Rng rng(4, "adamw_test");
  Parameter one = make_parameter("w", at::kFloat, Decay::Yes, rng);
  AdamW first({&one}, OptimizerConfig());
  one.grad = rng.normal_tensor({kNumWeights}, 1.0);
  first.step(0.1);

  Parameter two = one;
  two.master = one.master.clone();
  AdamW second({&two}, OptimizerConfig());
  second.restore(first.moments(), first.steps_done());
  one.grad = rng.normal_tensor({kNumWeights}, 1.0);
  two.grad = one.grad;
  first.step(0.2);
  second.step(0.2);
  EXPECT_TRUE(at::equal(one.master, two.master));
}

// Moments in bf16 are half as large, follow those in fp32, and stay what they are through a save.
TEST(AdamW, KeepsMomentsInBFloat16) {
  OptimizerConfig config;
  config.moments = MomentType::BFloat16;
  Rng rng(6, "adamw_test");
  Parameter full = make_parameter("w", at::kFloat, Decay::Yes, rng), half = full;
  half.master = full.master.clone();
  AdamW in_full({&full}, OptimizerConfig()), in_half({&half}, config);
  EXPECT_EQ(in_half.moments().at("w.first").scalar_type(), at::kBFloat16);
  for (int64_t t = 1; t <= 40; ++t) {
    full.grad = half.grad = rng.normal_tensor({kNumWeights}, 0.1);
    in_full.step(0.01);
    in_half.step(0.01);
  }
  const at::Tensor moved = full.master.sub(half.master).abs();
  EXPECT_LT(moved.max().item<double>(), 0.02 * 40 * 0.01);  // 2 % of the way that a weight may go
  EXPECT_GT(moved.max().item<double>(), 0.0);
  AdamW other({&half}, OptimizerConfig());
  EXPECT_THROW(other.restore(in_half.moments(), 40), DataError);
}

TEST(AdamW, RefusesStateThatDoesNotFit) {
  Rng rng(5, "adamw_test");
  Parameter parameter = make_parameter("w", at::kFloat, Decay::Yes, rng);
  AdamW optimizer({&parameter}, OptimizerConfig());
  auto moments = optimizer.moments();
  for (auto& [name, tensor] : moments) tensor = tensor.clone();

  auto missing = moments;
  missing.erase("w.second");
  EXPECT_THROW(optimizer.restore(missing, 1), DataError);
  auto left_over = moments;
  left_over["v.first"] = moments["w.first"];
  EXPECT_THROW(optimizer.restore(left_over, 1), DataError);
  auto reshaped = moments;
  reshaped["w.first"] = moments["w.first"].slice(0, 0, 3);
  EXPECT_THROW(optimizer.restore(reshaped, 1), DataError);
  auto retyped = moments;
  retyped["w.first"] = moments["w.first"].to(at::kDouble);
  EXPECT_THROW(optimizer.restore(retyped, 1), DataError);
  EXPECT_EQ(optimizer.steps_done(), 0);
}

TEST(GradientClipping, NormIsTakenOverAllParametersAndScaledDown) {
  Parameter one, two, without;
  one.grad = at::tensor({3.0F, 0.0F});
  two.grad = at::tensor({0.0F, 4.0F});
  const ParameterRefs parameters = {&one, &two, &without};
  const double norm = global_gradient_norm(parameters, *make_solo_communicator());
  EXPECT_DOUBLE_EQ(norm, 5.0);
  EXPECT_EQ(clip_scale(norm, 10.0), 1.0);
  EXPECT_EQ(clip_scale(norm, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(clip_scale(norm, 1.0), 0.2);
}

TEST(GradientClipping, ScalesTheGradientOfTheStep) {
  Rng rng(6, "adamw_test");
  Parameter scaled = make_parameter("w", at::kDouble, Decay::Yes, rng);
  Parameter plain = scaled;
  plain.master = scaled.master.clone();
  scaled.grad = rng.normal_tensor({kNumWeights}, 1.0).to(at::kDouble);
  plain.grad = scaled.grad.mul(0.2);
  OptimizerConfig config;
  config.epsilon = 0.1;  // else the first step does not depend on the gradient's size
  AdamW({&scaled}, config).step(0.1, 0.2);
  AdamW({&plain}, config).step(0.1);
  EXPECT_LT(scaled.master.sub(plain.master).abs().max().item<double>(), 1e-15);
}

TEST(GradientClipping, NamesTheParameterOfAGradientThatIsNotFinite) {
  Parameter parameter;
  parameter.name = "model.norm.weight";
  parameter.grad = at::tensor({1.0F, std::numeric_limits<float>::quiet_NaN()});
  try {
    (void)global_gradient_norm({&parameter}, *make_solo_communicator());
    FAIL() << "NaN was taken";
  } catch (const StateError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.norm.weight"));
  }
}

}  // namespace
}  // namespace switchyard
