#include "switchyard/kernels/first_derivative.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/check.hpp"
#include "switchyard/kernels/attention.hpp"
#include "switchyard/kernels/block_attention.hpp"
#include "switchyard/kernels/cross_entropy.hpp"
#include "switchyard/kernels/embedding.hpp"
#include "switchyard/kernels/experts.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/rope.hpp"
#include "switchyard/kernels/router_scores.hpp"
#include "switchyard/kernels/swiglu.hpp"
#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing::max_difference;
using testing::random_tensor;
using testing::TensorFunction;

struct FusedOperation {
  std::string name;
  TensorFunction function;
  std::vector<at::Tensor> inputs;
};

at::Tensor rotated(const std::vector<at::Tensor>& in) {
  HeadShape shape;
  shape.batch = shape.kv_heads = shape.group = 1;
  shape.positions = 3;
  shape.head_width = 4;
  const AttentionHeads heads = split_norm_rotate(in[0], in[1], in[1], make_rope_table(3, 4, 1e4, at::kDouble), shape, 1e-6, 1.0);
  return at::cat({heads.query_BJSIW.flatten(), heads.key_BJSW.flatten(), heads.value_BJSW.flatten()});
}

std::vector<FusedOperation> fused_operations() {
  const at::Tensor ids = at::tensor({2, 0, 1}, at::kLong);
  const ExpertSlots slots{at::tensor({0, 1}, at::kLong), random_tensor({2}, 4), at::tensor({0, 1, 2}, at::kLong)};
  const auto heads = [](at::ScalarType type) {
    return std::vector{random_tensor({1, 1, 5, 2, 4}, 1, type), random_tensor({1, 1, 5, 4}, 2, type), random_tensor({1, 1, 5, 4}, 3, type)};
  };
  const TensorFunction attention = [](const auto& in) { return causal_attention({in[0], in[1], in[2]}); };
  std::vector<FusedOperation> operations = {
      {"causal_attention", attention, heads(at::kFloat)},  // by tiles where they are
      {"causal_attention", [](const auto& in) { return block_attention({in[0], in[1], in[2]}); }, heads(at::kDouble)},
      {"linear_cross_entropy", [=](const auto& in) { return linear_cross_entropy(in[0], in[1], ids, -100); },
       {random_tensor({3, 2}, 1), random_tensor({3, 2}, 2)}},
      {"grouped_experts", [=](const auto& in) { return grouped_experts(in[0], in[1], in[2], slots); },
       {random_tensor({2, 3}, 1), random_tensor({2, 4, 3}, 2), random_tensor({2, 3, 2}, 3)}},
      {"rms_norm", [](const auto& in) { return rms_norm(in[0], in[1], 1e-6); }, {random_tensor({2, 3}, 1), random_tensor({3}, 2)}},
      {"residual_rms_norm", [](const auto& in) { return residual_rms_norm(in[0], in[0], in[1], 1e-6).normed_TD; },
       {random_tensor({2, 3}, 1), random_tensor({3}, 2)}},
      {"split_norm_rotate", rotated, {random_tensor({3, 12}, 1), random_tensor({4}, 2)}},
      {"swiglu", [](const auto& in) { return swiglu(in[0]); }, {random_tensor({2, 6}, 1)}},
  };
  if (has_tile_products(at::kFloat)) {  // else it is one of ATen's, which can be differentiated again
    operations.push_back({"router_scores", [](const auto& in) { return router_scores(in[0], in[1]); },
                          {random_tensor({2, 3}, 1, at::kFloat), random_tensor({4, 3}, 2, at::kFloat)}});
  }
  return operations;
}

TEST(FirstDerivative, IsAllThatFusedOperationsHave) {
  for (const FusedOperation& operation : fused_operations()) {
    SCOPED_TRACE(operation.name);
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& input : operation.inputs) leaves.push_back(input.detach().clone().set_requires_grad(true));
    const auto differentiate = [&](bool create_graph) {
      (void)torch::autograd::grad({operation.function(leaves).sum()}, leaves, {}, std::nullopt, create_graph);
    };
    EXPECT_NO_THROW(differentiate(false));
    EXPECT_THAT([&] { differentiate(true); }, ThrowsMessage<UsageError>(HasSubstr(operation.name + ": its backward")));
  }
}

// Its backward is made of ATen's operations, which autograd sees: d/dx of the sum of (d/dx sum x^3)^2 = 36 x^3.
TEST(FirstDerivative, OfTheEmbeddingIsDifferentiable) {
  const at::Tensor ids = at::tensor({2, 0, 1}, at::kLong);
  const std::vector<at::Tensor> table = {random_tensor({3, 2}, 1).set_requires_grad(true)};
  const at::Tensor cubes = embed(table[0], ids, at::kDouble).pow(3).sum();
  const at::Tensor gradient = torch::autograd::grad({cubes}, table, {}, std::nullopt, /*create_graph=*/true)[0];
  const at::Tensor second = torch::autograd::grad({gradient.square().sum()}, table)[0];
  EXPECT_LE(max_difference(second, table[0].detach().pow(3).mul(36.0)), 1e-10);
}

}  // namespace
}  // namespace switchyard
