#include "switchyard/kernels/cross_entropy.hpp"

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

using testing::expect_close_in;
using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

constexpr int64_t kIgnored = -100;

at::Tensor random_targets(int64_t num_tokens, int64_t vocabulary, int64_t ignored_every) {
  Rng rng(7, "targets");
  std::vector<int64_t> targets;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const auto target = static_cast<int64_t>(rng.below(static_cast<uint64_t>(vocabulary)));
    targets.push_back(ignored_every > 0 && t % ignored_every == 0 ? kIgnored : target);
  }
  return at::tensor(targets, at::kLong);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(LinearCrossEntropy);

TEST_P(LinearCrossEntropy, MatchesHandWorkedLosses) {
  const at::Tensor hidden = at::tensor({1.0, 0.0}, at::kDouble).reshape({2, 1});
  const at::Tensor head = at::tensor({0.0, std::log(3.0)}, at::kDouble).reshape({2, 1});
  const at::Tensor targets = at::tensor({1, 0}, at::kLong);  // probabilities 3/4 and 1/2
  EXPECT_NEAR(linear_cross_entropy(hidden, head, targets, kIgnored).item<double>(), std::log(4.0 / 3.0) + std::log(2.0), 1e-12);
  EXPECT_LE(max_difference(linear_token_losses(hidden, head, targets, kIgnored),
                           at::tensor({std::log(4.0 / 3.0), std::log(2.0)}, at::kDouble)),
            1e-12);
}

TEST_P(LinearCrossEntropy, EqualsItsReferenceInValueAndGradient) {
  struct Shape {
    int64_t tokens, width, vocabulary, ignored_every;
  };
  // 1100 tokens take several chunks, the last one short.
  for (const Shape& s : {Shape{1, 1, 1, 0}, {1, 3, 5, 0}, {9, 4, 17, 3}, {1100, 5, 13, 0}, {1100, 3, 33, 2}}) {
    const at::Tensor targets = random_targets(s.tokens, s.vocabulary, s.ignored_every);
    expect_same_function([&](const auto& in) { return linear_cross_entropy(in[0], in[1], targets, kIgnored); },
                         [&](const auto& in) { return linear_cross_entropy_reference(in[0], in[1], targets, kIgnored); },
                         {random_tensor({s.tokens, s.width}, 1), random_tensor({s.vocabulary, s.width}, 2)}, 1e-9);
  }
}

TEST_P(LinearCrossEntropy, IsTheSumOfTheTokenLosses) {
  const at::Tensor hidden = random_tensor({70, 4}, 1);
  const at::Tensor head = random_tensor({9, 4}, 2);
  const at::Tensor targets = random_targets(70, 9, 5);
  const at::Tensor losses = linear_token_losses(hidden, head, targets, kIgnored);
  EXPECT_EQ(losses[0].item<double>(), 0.0);
  EXPECT_GT(losses[1].item<double>(), 0.0);
  EXPECT_NEAR(linear_cross_entropy(hidden, head, targets, kIgnored).item<double>(), losses.sum().item<double>(), 1e-10);
}

TEST_P(LinearCrossEntropy, WithoutTargetsIsZeroWithZeroGradient) {
  at::Tensor hidden = random_tensor({3, 2}, 1).set_requires_grad(true);
  at::Tensor head = random_tensor({4, 2}, 2).set_requires_grad(true);
  const at::Tensor loss = linear_cross_entropy(hidden, head, at::full({3}, kIgnored, at::kLong), kIgnored);
  EXPECT_EQ(loss.item<double>(), 0.0);
  loss.backward();
  EXPECT_EQ(hidden.grad().abs().max().item<double>(), 0.0);
  EXPECT_EQ(head.grad().abs().max().item<double>(), 0.0);
}

TEST_P(LinearCrossEntropy, StaysFiniteForLargeLogits) {
  const at::Tensor hidden = at::full({1, 1}, 1000.0, at::kFloat);
  const at::Tensor head = at::tensor({1.0, -1.0}, at::kFloat).reshape({2, 1});
  EXPECT_EQ(linear_cross_entropy(hidden, head, at::tensor({1}, at::kLong), kIgnored).item<double>(), 2000.0);
}

// The head's gradient is summed by tiles where the processor has them: one token, one word, odd sizes, several chunks and panels, gaps,
// rows of logits that are whole pages.
void expect_close_losses(at::ScalarType type, double tolerance) {
  for (const auto& [tokens, width, vocabulary, ignored_every] :
       {std::array<int64_t, 4>{1, 2, 3, 0}, {3, 2, 1, 0}, {65, 16, 50, 0}, {33, 5, 7, 2}, {1600, 34, 301, 3}, {130, 300, 193, 0}, {1025, 8, 1024, 0}}) {
    SCOPED_TRACE(::testing::Message() << type << ", " << tokens << " tokens, width " << width << ", vocabulary " << vocabulary);
    const at::Tensor targets = random_targets(tokens, vocabulary, ignored_every);
    std::vector<at::Tensor> in = {random_tensor({tokens, width}, 1), random_tensor({vocabulary, width}, 2)};
    in[1].div_(std::sqrt(static_cast<double>(width)));
    expect_close_in(
        type,
        [&](const auto& given) {
          const at::Tensor loss = linear_cross_entropy(given[0], given[1], targets, kIgnored);
          EXPECT_EQ(loss.scalar_type(), at::kFloat);
          return loss.to(type);
        },
        [&](const auto& given) { return linear_cross_entropy_reference(given[0], given[1], targets, kIgnored); }, in, tolerance);
  }
}

TEST_P(LinearCrossEntropy, IsCloseInBfloat16) { expect_close_losses(at::kBFloat16, 0.02); }
TEST_P(LinearCrossEntropy, IsCloseInFloat32) { expect_close_losses(at::kFloat, 4e-6); }

// Loss and gradients, those of hidden and head, of both.
std::vector<at::Tensor> loss_and_gradients(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets) {
  const at::Tensor hidden_TD = hidden.detach().clone().set_requires_grad(true), head_VD = head.detach().clone().set_requires_grad(true);
  const at::Tensor loss = linear_cross_entropy(hidden_TD, head_VD, targets, kIgnored);
  loss.backward();
  return {loss.detach(), hidden_TD.grad(), head_VD.grad()};
}

// The target's logit is 20, the others' are 0.
TEST_P(LinearCrossEntropy, KeepsTheLossOfASureToken) {
  constexpr int64_t kWords = 70;
  const double others = (kWords - 1) * std::exp(-20.0);
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const int64_t target : {int64_t{0}, kWords - 1}) {
      const at::Tensor hidden = at::full({1, 2}, 10.0, type), head = at::zeros({kWords, 2}, type);
      head[target].fill_(1.0);
      const auto result = loss_and_gradients(hidden, head, at::full({1}, target, at::kLong));
      EXPECT_NEAR(result[0].item<double>(), std::log1p(others), 1e-4 * others) << type;
      EXPECT_NEAR(result[2][target][0].item<double>(), -10.0 * others / (1.0 + others), 0.01 * others * 10.0) << type;
    }
  }
}

// One token's NaN is its own; words that are infinitely improbable do not count.
TEST_P(LinearCrossEntropy, KeepsInfinityAndNanWhereTheyAre) {
  constexpr int64_t kWords = 130;
  const double infinite = std::numeric_limits<double>::infinity();
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const at::Tensor hidden = at::ones({3, 2}, type), head = at::zeros({kWords, 2}, type);
    hidden[1].fill_(std::nan(""));
    head.narrow(0, 2, kWords - 2).fill_(-infinite);
    const at::Tensor losses = linear_token_losses(hidden, head, at::tensor(c10::ArrayRef<int64_t>({0, 0, kWords - 1})), kIgnored);
    EXPECT_NEAR(losses[0].item<double>(), std::log(2.0), 1e-6) << type;
    EXPECT_TRUE(std::isnan(losses[1].item<double>())) << type;
    EXPECT_EQ(losses[2].item<double>(), infinite) << type;
  }
}

TEST_P(LinearCrossEntropy, RejectsATargetOutsideTheVocabulary) {
  const at::Tensor hidden = random_tensor({2, 3}, 1);
  const at::Tensor head = random_tensor({4, 3}, 2);
  EXPECT_THROW((void)linear_cross_entropy(hidden, head, at::tensor({0, 4}, at::kLong), kIgnored), ShapeError);
  EXPECT_THROW((void)linear_cross_entropy(hidden, head, at::tensor({0, -1}, at::kLong), kIgnored), ShapeError);
  EXPECT_THROW((void)linear_cross_entropy(hidden, head, at::tensor({0}, at::kLong), kIgnored), ShapeError);
  const at::Tensor narrow_head = random_tensor({4, 2}, 2);
  EXPECT_THROW((void)linear_cross_entropy(hidden, narrow_head, at::tensor({0, 1}, at::kLong), kIgnored), ShapeError);
}

}  // namespace
}  // namespace switchyard
