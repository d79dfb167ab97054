#include "switchyard/kernels/attention.hpp"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/check.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

TEST(CausalAttention, MatchesHandWorkedWeights) {
  // One head of width 1. Position 1 scores ln 3 for itself against 0 for position 0: weights 1/4 and 3/4.
  AttentionHeads heads;
  heads.query_BJSIW = at::tensor({5.0, 1.0}, at::kDouble).reshape({1, 1, 2, 1, 1});
  heads.key_BJSW = at::tensor({0.0, std::log(3.0)}, at::kDouble).reshape({1, 1, 2, 1});
  heads.value_BJSW = at::tensor({8.0, 4.0}, at::kDouble).reshape({1, 1, 2, 1});
  EXPECT_LE(max_difference(causal_attention(heads), at::tensor({8.0, 5.0}, at::kDouble).reshape({2, 1})), 1e-12);
}

struct Sizes {
  int64_t batch, kv_heads, positions, group, width;
};

std::vector<at::Tensor> random_heads(const Sizes& s, at::ScalarType type = at::kDouble) {
  return {random_tensor({s.batch, s.kv_heads, s.positions, s.group, s.width}, 1, type),
          random_tensor({s.batch, s.kv_heads, s.positions, s.width}, 2, type),
          random_tensor({s.batch, s.kv_heads, s.positions, s.width}, 3, type)};
}

TEST(CausalAttention, EqualsItsReferenceInValueAndGradient) {
  // 130 and 300 positions cross the block borders, 300 unevenly.
  for (const Sizes& s : {Sizes{1, 1, 1, 1, 2}, {2, 3, 7, 2, 4}, {1, 2, 130, 1, 6}, {2, 1, 300, 3, 4}}) {
    expect_same_function([](const auto& in) { return causal_attention({in[0], in[1], in[2]}); },
                         [](const auto& in) { return causal_attention_reference({in[0], in[1], in[2]}); },
                         random_heads(s), 1e-10);
  }
}

TEST(CausalAttention, IsCloseInBfloat16) {
  const std::vector<at::Tensor> in = random_heads({2, 2, 200, 2, 16}, at::kBFloat16);
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kDouble); };
  const at::Tensor exact = causal_attention_reference({wide(in[0]), wide(in[1]), wide(in[2])});
  EXPECT_LE(max_difference(causal_attention({in[0], in[1], in[2]}), exact), 0.05);
}

TEST(CausalAttention, DoesNotSeeTheFuture) {
  const std::vector<at::Tensor> in = random_heads({1, 1, 140, 2, 4});
  const at::Tensor before = causal_attention({in[0], in[1], in[2]});
  in[1].narrow(2, 137, 3).add_(1.0);
  in[2].narrow(2, 137, 3).add_(1.0);
  const at::Tensor after = causal_attention({in[0], in[1], in[2]});
  EXPECT_EQ(max_difference(before.narrow(0, 0, 137), after.narrow(0, 0, 137)), 0.0);
  EXPECT_GT(max_difference(before.narrow(0, 137, 3), after.narrow(0, 137, 3)), 1e-3);
}

TEST(CausalAttention, RowsDoNotSeeEachOther) {
  const std::vector<at::Tensor> in = random_heads({3, 2, 9, 2, 4});
  const at::Tensor joined = causal_attention({in[0], in[1], in[2]});
  const at::Tensor alone = causal_attention({in[0].narrow(0, 1, 1), in[1].narrow(0, 1, 1), in[2].narrow(0, 1, 1)});
  EXPECT_LE(max_difference(joined.narrow(0, 9, 9), alone), 1e-14);
}

TEST(CausalAttention, RejectsHeadsThatDoNotFit) {
  std::vector<at::Tensor> in = random_heads({1, 2, 5, 2, 4});
  EXPECT_THROW((void)causal_attention({in[0], in[1].narrow(2, 0, 4), in[2]}), ShapeError);
  EXPECT_THROW((void)causal_attention({in[0], in[1], in[2].narrow(1, 0, 1)}), ShapeError);
}

}  // namespace
}  // namespace switchyard
