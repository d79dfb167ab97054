#include "switchyard/core/routing.hpp"

#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

at::Tensor integers(std::initializer_list<int64_t> values) {
  return at::tensor(at::ArrayRef<int64_t>(values), at::TensorOptions(at::kLong));
}

at::Tensor reals(std::initializer_list<float> values) {
  return at::tensor(at::ArrayRef<float>(values), at::TensorOptions(at::kFloat));
}

// Three tokens, the second one padding, of four experts.
Routing small_routing() {
  const at::Tensor ids_TK = integers({2, 0, -1, -1, 0, 3}).view({3, 2});
  const at::Tensor weights_TK = reals({.6F, .4F, .5F, .5F, .9F, .1F}).view({3, 2});
  return routing_from_top_k(ids_TK, weights_TK, 4);
}

TEST(RoutingFromTopK, SortsSlotsByExpertThenToken) {
  const Routing routing = small_routing();
  EXPECT_TRUE(at::equal(routing.token_A, integers({0, 2, 0, 2})));
  EXPECT_TRUE(at::equal(routing.expert_A, integers({0, 0, 2, 3})));
  EXPECT_TRUE(at::equal(routing.weight_A, reals({.4F, .9F, .6F, .1F})));
  EXPECT_TRUE(at::equal(routing.offsets_E, integers({0, 2, 2, 3, 4})));
  EXPECT_EQ(routing.num_tokens, 3);
  EXPECT_EQ(routing.num_experts, 4);
  EXPECT_FALSE(routing.kept_A.defined());
  EXPECT_FALSE(routing.logits_TE.defined());
}

TEST(RoutingFromTopK, ZerosTheWeightsOfPadding) {
  EXPECT_TRUE(at::equal(small_routing().weights_TK, reals({.6F, .4F, 0.F, 0.F, .9F, .1F}).view({3, 2})));
}

TEST(RoutingFromTopK, KeepsTheGradientOfBothWeights) {
  const at::Tensor ids_TK = integers({2, 0, -1, -1, 0, 3}).view({3, 2});
  const at::Tensor weights_TK = at::ones({3, 2}).requires_grad_();
  const Routing routing = routing_from_top_k(ids_TK, weights_TK, 4);
  routing.weight_A.mul(reals({1, 2, 3, 4})).sum().add(routing.weights_TK.sum(), 10).backward();
  EXPECT_TRUE(at::equal(weights_TK.grad(), reals({13, 11, 0, 0, 12, 14}).view({3, 2})));
}

TEST(RoutingFromTopK, TakesOnlyPaddingAndNoTokens) {
  const Routing padding = routing_from_top_k(at::full({3, 2}, -1, at::kLong), at::ones({3, 2}), 4);
  EXPECT_EQ(padding.token_A.numel(), 0);
  EXPECT_TRUE(at::equal(padding.offsets_E, at::zeros({5}, at::kLong)));
  const Routing none = routing_from_top_k(at::zeros({0, 2}, at::kLong), at::ones({0, 2}), 4);
  EXPECT_EQ(none.weight_A.numel(), 0);
  EXPECT_EQ(none.num_tokens, 0);
}

TEST(RoutingFromTopK, TakesAnyMemoryLayout) {
  const at::Tensor ids_KT = integers({2, 0, 1, 3}).view({2, 2});
  const at::Tensor weights_KT = reals({1, 2, 3, 4}).view({2, 2});
  const Routing routing = routing_from_top_k(ids_KT.t(), weights_KT.t(), 4);
  EXPECT_TRUE(at::equal(routing.token_A, integers({1, 0, 0, 1})));
  EXPECT_TRUE(at::equal(routing.weight_A, reals({2, 3, 1, 4})));
}

TEST(RoutingFromTopK, RefusesWrongInput) {
  const at::Tensor weights_TK = at::ones({1, 2});
  EXPECT_THAT([&] { (void)routing_from_top_k(integers({0, 4}).view({1, 2}), weights_TK, 4); },
              ThrowsMessage<ShapeError>(HasSubstr("token 0 chose expert 4; expected -1 (padding) to 3")));
  EXPECT_THROW((void)routing_from_top_k(integers({0, -2}).view({1, 2}), weights_TK, 4), ShapeError);
  EXPECT_THAT([&] { (void)routing_from_top_k(integers({0, -1}).view({1, 2}), weights_TK, 4); },
              ThrowsMessage<ShapeError>(HasSubstr("some of its experts -1")));
  EXPECT_THROW((void)routing_from_top_k(integers({-1, 0}).view({1, 2}), weights_TK, 4), ShapeError);
  EXPECT_THROW((void)routing_from_top_k(integers({0, 1}), weights_TK, 4), ShapeError);
  EXPECT_THROW((void)routing_from_top_k(integers({0, 1}).view({2, 1}), weights_TK, 4), ShapeError);
  EXPECT_THROW((void)routing_from_top_k(at::zeros({1, 2}), weights_TK, 4), ShapeError);
  EXPECT_THROW((void)routing_from_top_k(integers({0, 1}).view({1, 2}), weights_TK, 0), ShapeError);
  EXPECT_THROW((void)routing_from_top_k(integers({0, 1}).view({1, 2}), at::Tensor(), 4), ShapeError);
}

TEST(CountExperts, CountsRequestedSlotsByGroup) {
  Routing routing = small_routing();
  routing.kept_A = at::zeros({4}, at::kBool);  // dropped slots were requested all the same
  const ExpertCounts counts = count_experts(routing, integers({1, -1, 0}), 3);
  EXPECT_TRUE(at::equal(counts.counts_GE, integers({1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0}).view({3, 4})));
  EXPECT_TRUE(at::equal(counts.tokens_G, integers({1, 1, 0})));
  EXPECT_EQ(counts.counts_GE.scalar_type(), at::kLong);
}

TEST(CountExperts, AgreesWithALoopOnRandomChoices) {
  constexpr int64_t kTokens = 500;
  constexpr int64_t kChosen = 3;
  constexpr int64_t kExperts = 11;
  constexpr int64_t kGroups = 4;
  Rng rng(1, "test");
  at::Tensor ids_TK = at::zeros({kTokens, kChosen}, at::kLong);
  at::Tensor group_T = at::zeros({kTokens}, at::kLong);
  at::Tensor expected_GE = at::zeros({kGroups, kExperts}, at::kLong);
  for (int64_t token = 0; token < kTokens; ++token) {
    const int64_t group = static_cast<int64_t>(rng.below(kGroups + 1)) - 1;
    group_T[token] = group;
    for (int64_t k = 0; k < kChosen; ++k) {
      const auto expert = static_cast<int64_t>(rng.below(kExperts));
      ids_TK[token][k] = group < 0 ? -1 : expert;
      if (group >= 0) expected_GE[group][expert] += 1;
    }
  }
  const Routing routing = routing_from_top_k(ids_TK, at::ones({kTokens, kChosen}), kExperts);
  const ExpertCounts counts = count_experts(routing, group_T, kGroups);
  EXPECT_TRUE(at::equal(counts.counts_GE, expected_GE));
  EXPECT_TRUE(at::equal(counts.counts_GE.sum(1), counts.tokens_G.mul(kChosen)));
  EXPECT_TRUE(at::equal(counts.counts_GE.sum(0), routing.offsets_E.diff()));
}

TEST(CountExperts, RefusesWrongGroups) {
  const Routing routing = small_routing();
  EXPECT_THROW((void)count_experts(routing, integers({0, -1, 2}), 2), ShapeError);
  EXPECT_THROW((void)count_experts(routing, integers({0, -2, 0}), 2), ShapeError);
  EXPECT_THROW((void)count_experts(routing, integers({0, -1}), 2), ShapeError);
  EXPECT_THROW((void)count_experts(routing, at::zeros({3}), 2), ShapeError);
  EXPECT_THROW((void)count_experts(routing, integers({0, -1, 0}), 0), ShapeError);
  EXPECT_THAT([&] { (void)count_experts(routing, integers({-1, -1, 0}), 2); },
              ThrowsMessage<ShapeError>(HasSubstr("padding token 0 has a slot")));
}

}  // namespace
}  // namespace switchyard
