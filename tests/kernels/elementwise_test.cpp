// RMSNorm, sums in the wide type, SwiGLU, rotary embedding and the token embedding.
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/kernels/accumulate.hpp"
#include "switchyard/kernels/embedding.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/rope.hpp"
#include "switchyard/kernels/swiglu.hpp"

namespace switchyard {
namespace {

using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

SWITCHYARD_ON_EACH_INSTRUCTION_SET(RmsNorm);

TEST_P(RmsNorm, MatchesAHandWorkedRow) {
  const at::Tensor x = at::tensor({3.0, 4.0, 0.0, 0.0}, at::kDouble).reshape({1, 4});  // mean of squares 25 / 4
  const at::Tensor weight = at::tensor({1.0, 2.0, 1.0, 1.0}, at::kDouble);
  EXPECT_LE(max_difference(rms_norm(x, weight, 0.0), at::tensor({1.2, 3.2, 0.0, 0.0}, at::kDouble).reshape({1, 4})), 1e-12);
}

TEST_P(RmsNorm, EqualsItsReferenceInValueAndGradient) {
  for (const auto& [rows, width] : {std::pair{1, 1}, {1, 7}, {5, 32}, {67, 33}, {3, 130}}) {
    expect_same_function([](const auto& in) { return rms_norm(in[0], in[1], 1e-6); },
                         [](const auto& in) { return rms_norm_reference(in[0], in[1], 1e-6); },
                         {random_tensor({rows, width}, 1), random_tensor({width}, 2)}, 1e-10);
  }
}

TEST_P(RmsNorm, IsCloseInSinglePrecisionAndBfloat16) {
  const at::Tensor weight = random_tensor({33}, 2, at::kFloat);
  expect_same_function([](const auto& in) { return rms_norm(in[0], in[1], 1e-6); },
                       [](const auto& in) { return rms_norm_reference(in[0], in[1], 1e-6); },
                       {random_tensor({65, 33}, 1, at::kFloat), weight}, 2e-5);
  const at::Tensor x = random_tensor({65, 33}, 1, at::kBFloat16);
  const at::Tensor exact = rms_norm_reference(x.to(at::kDouble), weight.to(at::kDouble), 1e-6);
  EXPECT_LE(max_difference(rms_norm(x, weight, 1e-6).to(at::kDouble).div(exact), exact.div(exact)), 0.5 / 128);
}

TEST_P(RmsNorm, RejectsWrongShapesAndTypes) {
  EXPECT_THROW((void)rms_norm(random_tensor({2, 3}, 1), random_tensor({4}, 2), 1e-6), ShapeError);
  EXPECT_THROW((void)rms_norm(random_tensor({2, 3}, 1), random_tensor({3}, 2, at::kFloat), 1e-6), ShapeError);
  EXPECT_THROW((void)rms_norm(random_tensor({3, 0}, 1), random_tensor({0}, 2), 1e-6), ShapeError);
  EXPECT_THROW((void)residual_rms_norm(random_tensor({3, 0}, 1), at::Tensor(), random_tensor({0}, 2), 1e-6), ShapeError);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(ResidualRmsNorm);

TEST_P(ResidualRmsNorm, EqualsItsReferenceInValueAndGradient) {
  const auto reference = [](const at::Tensor& hidden, const at::Tensor& weight) {
    return at::cat({hidden.mul(3.0), rms_norm_reference(hidden, weight, 1e-6)});
  };
  const auto both = [](const ResidualNorm& norm) { return at::cat({norm.hidden_TD.mul(3.0), norm.normed_TD}); };
  for (const auto& [rows, width] : {std::pair{1, 1}, {5, 32}, {67, 33}}) {
    const std::vector<at::Tensor> inputs = {random_tensor({rows, width}, 1), random_tensor({rows, width}, 2),
                                            random_tensor({width}, 3)};
    expect_same_function([&](const auto& in) { return both(residual_rms_norm(in[0], in[1], in[2], 1e-6)); },
                         [&](const auto& in) { return reference(in[0].add(in[1]), in[2]); }, inputs, 1e-10);
    expect_same_function([&](const auto& in) { return both(residual_rms_norm(in[0], at::Tensor(), in[1], 1e-6)); },
                         [&](const auto& in) { return reference(in[0], in[1]); }, {inputs[0], inputs[2]}, 1e-10);
  }
}

TEST_P(ResidualRmsNorm, EitherResultMayGoUnused) {
  const std::vector<at::Tensor> inputs = {random_tensor({5, 9}, 1), random_tensor({5, 9}, 2)};
  const at::Tensor weight = random_tensor({9}, 3);
  expect_same_function([&](const auto& in) { return residual_rms_norm(in[0], in[1], weight, 1e-6).hidden_TD; },
                       [&](const auto& in) { return in[0].add(in[1]); }, inputs, 1e-12);
  expect_same_function([&](const auto& in) { return residual_rms_norm(in[0], in[1], weight, 1e-6).normed_TD; },
                       [&](const auto& in) { return rms_norm_reference(in[0].add(in[1]), weight, 1e-6); }, inputs, 1e-10);
}

TEST_P(ResidualRmsNorm, NormsTheRoundedSumAndRejectsWrongShapes) {
  const at::Tensor x = random_tensor({65, 33}, 1, at::kBFloat16), added = random_tensor({65, 33}, 2, at::kBFloat16);
  const at::Tensor weight = random_tensor({33}, 3, at::kFloat);
  const ResidualNorm norm = residual_rms_norm(x, added, weight, 1e-6);
  EXPECT_EQ(max_difference(norm.hidden_TD, x.add(added)), 0.0);
  EXPECT_EQ(max_difference(norm.normed_TD, rms_norm(x.add(added), weight, 1e-6)), 0.0);
  EXPECT_THROW((void)residual_rms_norm(x, added.narrow(0, 0, 1), weight, 1e-6), ShapeError);
  EXPECT_THROW((void)residual_rms_norm(x, added.to(at::kFloat), weight, 1e-6), ShapeError);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(Accumulate);

TEST_P(Accumulate, AddsInTheWideTypeToAllOrToAPart) {
  const at::Tensor values = random_tensor({3, 5, 70}, 1, at::kBFloat16);
  const at::Tensor start = random_tensor({4, 5, 99}, 2, at::kFloat);
  const at::Tensor all = start.narrow(0, 1, 3).narrow(2, 7, 70).contiguous();
  const at::Tensor expected = all.add(values.to(at::kFloat));
  accumulate(all, values);
  EXPECT_EQ(max_difference(all, expected), 0.0);
  const at::Tensor larger = start.clone();
  const at::Tensor part = larger.narrow(0, 1, 3).narrow(2, 7, 70);
  accumulate(part, values);
  EXPECT_EQ(max_difference(part, expected), 0.0);
  part.copy_(start.narrow(0, 1, 3).narrow(2, 7, 70));
  EXPECT_EQ(max_difference(larger, start), 0.0);  // nothing beside the part was touched
}

TEST_P(Accumulate, TakesManyNumbersAndNoneAndRejectsWhatDoesNotFit) {
  const at::Tensor sum = random_tensor({40001}, 1), values = random_tensor({40001}, 2);
  const at::Tensor expected = sum.add(values);
  accumulate(sum, values);
  EXPECT_EQ(max_difference(sum, expected), 0.0);
  accumulate(at::zeros({0, 3}, at::kFloat), at::zeros({0, 3}, at::kBFloat16));
  EXPECT_THROW(accumulate(sum, values.narrow(0, 0, 7)), ShapeError);
  EXPECT_THROW(accumulate(sum, values.to(at::kFloat)), ShapeError);
  EXPECT_THROW(accumulate(random_tensor({3, 4}, 1).t(), random_tensor({4, 3}, 2)), ShapeError);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(Swiglu);

TEST_P(Swiglu, MatchesAHandWorkedRow) {
  const at::Tensor gate_up = at::tensor({0.0, std::log(3.0), 5.0, 2.0}, at::kDouble).reshape({1, 4});
  const at::Tensor expected = at::tensor({0.0, std::log(3.0) * 0.75 * 2.0}, at::kDouble).reshape({1, 2});
  EXPECT_LE(max_difference(swiglu(gate_up), expected), 1e-12);
}

TEST_P(Swiglu, EqualsItsReferenceInValueAndGradient) {
  for (const auto& [rows, width] : {std::pair{1, 1}, {3, 5}, {70, 33}, {0, 4}}) {
    expect_same_function([](const auto& in) { return swiglu(in[0]); },
                         [](const auto& in) { return swiglu_reference(in[0]); }, {random_tensor({rows, 2 * width}, 3)}, 1e-12);
  }
}

TEST_P(Swiglu, IsCloseInSinglePrecision) {
  // Gates far from zero too: exp must neither overflow nor lose the small side.
  const at::Tensor gate_up = random_tensor({40, 66}, 3).mul(30.0).to(at::kFloat);
  const at::Tensor exact = swiglu_reference(gate_up.to(at::kDouble));
  EXPECT_LE(max_difference(swiglu(gate_up).to(at::kDouble).sub(exact).div(exact.abs().add(1e-3)), exact.mul(0.0)), 2e-6);
}

TEST_P(Swiglu, WeightedBackwardGivesTheGradientOfTheWeight) {
  const at::Tensor gate_up = random_tensor({4, 6}, 3);
  const at::Tensor d_hidden = random_tensor({4, 3}, 4);
  const at::Tensor weight = random_tensor({4}, 5);
  const SwigluGradient gradient = swiglu_backward(gate_up, d_hidden, weight);
  const at::Tensor hidden = swiglu_reference(gate_up);
  EXPECT_LE(max_difference(gradient.weighted, hidden.mul(weight.unsqueeze(1))), 1e-12);
  EXPECT_LE(max_difference(gradient.weight_A, hidden.mul(d_hidden).sum(1)), 1e-12);
  const SwigluGradient plain = swiglu_backward(gate_up, d_hidden.mul(weight.unsqueeze(1)), at::Tensor());
  EXPECT_LE(max_difference(gradient.gate_up_AF, plain.gate_up_AF), 1e-12);
  EXPECT_FALSE(plain.weight_A.defined());
}

TEST_P(Swiglu, WeightedBackwardEqualsItsReference) {
  const at::Tensor gate_up = random_tensor({65, 74}, 3), d_hidden = random_tensor({65, 37}, 4), weight = random_tensor({65}, 5);
  for (const at::Tensor& weight_A : {weight, at::Tensor()}) {
    const SwigluGradient tested = swiglu_backward(gate_up, d_hidden, weight_A);
    const SwigluGradient reference = swiglu_backward_reference(gate_up, d_hidden, weight_A);
    EXPECT_LE(max_difference(tested.gate_up_AF, reference.gate_up_AF), 1e-12);
    EXPECT_LE(max_difference(tested.weighted, reference.weighted), 1e-12);
    ASSERT_EQ(tested.weight_A.defined(), weight_A.defined());
    if (weight_A.defined()) {
      EXPECT_LE(max_difference(tested.weight_A, reference.weight_A), 1e-12);
    }
  }
}

TEST_P(Swiglu, RejectsAnOddWidth) { EXPECT_THROW((void)swiglu(random_tensor({2, 3}, 1)), ShapeError); }

HeadShape head_shape(int64_t batch, int64_t positions, int64_t kv_heads, int64_t group, int64_t width) {
  HeadShape shape;
  shape.batch = batch;
  shape.positions = positions;
  shape.kv_heads = kv_heads;
  shape.group = group;
  shape.head_width = width;
  return shape;
}

TEST(RopeTable, HoldsTheAnglesOfThePaper) {
  const RopeTable table = make_rope_table(3, 4, 100.0, at::kDouble);  // frequencies 1 and 1 / 10
  EXPECT_LE(max_difference(table.cos_SP.select(0, 2), at::tensor({std::cos(2.0), std::cos(0.2)}, at::kDouble)), 1e-15);
  EXPECT_LE(max_difference(table.sin_SP.select(0, 2), at::tensor({std::sin(2.0), std::sin(0.2)}, at::kDouble)), 1e-15);
  EXPECT_THROW((void)make_rope_table(3, 5, 100.0, at::kDouble), ShapeError);
  EXPECT_THROW((void)make_rope_table(3, 4, 0.0, at::kDouble), ShapeError);
}

// All three results as one row, so that one function stands for them.
at::Tensor flat_heads(const AttentionHeads& heads) {
  return at::cat({heads.query_BJSIW.reshape({-1}), heads.key_BJSW.reshape({-1}), heads.value_BJSW.reshape({-1})});
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(SplitNormRotate);

TEST_P(SplitNormRotate, PutsEachHeadInItsPlace) {
  const HeadShape shape = head_shape(1, 2, 2, 2, 2);
  const at::Tensor ones = at::ones({2}, at::kDouble);
  const at::Tensor qkv = random_tensor({2, shape.qkv_width()}, 6);
  const RopeTable table = make_rope_table(2, 2, 100.0, at::kDouble);
  const AttentionHeads heads = split_norm_rotate(qkv, ones, ones, table, shape, 0.0, 0.5);
  // Query head 3 = key head 1, second of its group; position 1 turns by one radian.
  const double first = qkv[1][6].item<double>(), second = qkv[1][7].item<double>();
  const double norm = std::sqrt((first * first + second * second) / 2.0);
  const double turned = (first * std::cos(1.0) - second * std::sin(1.0)) / norm;
  EXPECT_NEAR(heads.query_BJSIW[0][1][1][1][0].item<double>(), 0.5 * turned, 1e-12);
  EXPECT_EQ(heads.value_BJSW[0][1][0][1].item<double>(), qkv[0][15].item<double>());
}

TEST_P(SplitNormRotate, EqualsItsReferenceInValueAndGradient) {
  for (const HeadShape& shape : {head_shape(1, 1, 1, 1, 2), head_shape(2, 5, 3, 2, 6), head_shape(3, 17, 1, 4, 34)}) {
    const RopeTable table = make_rope_table(20, shape.head_width, 1e4, at::kDouble);
    const auto run = [&](const auto& function, const auto& in) {
      return flat_heads(function(in[0], in[1], in[2], table, shape, 1e-6, 0.3));
    };
    expect_same_function([&](const auto& in) { return run(split_norm_rotate, in); },
                         [&](const auto& in) { return run(split_norm_rotate_reference, in); },
                         {random_tensor({shape.batch * shape.positions, shape.qkv_width()}, 7),
                          random_tensor({shape.head_width}, 8), random_tensor({shape.head_width}, 9)},
                         1e-10);
  }
}

TEST_P(SplitNormRotate, RejectsAShortTableAndAWrongWidth) {
  const HeadShape shape = head_shape(1, 4, 1, 1, 4);
  const at::Tensor weight = at::ones({4}, at::kDouble);
  const at::Tensor qkv = random_tensor({4, 12}, 1);
  EXPECT_THROW((void)split_norm_rotate(qkv, weight, weight, make_rope_table(3, 4, 1e4, at::kDouble), shape, 1e-6, 1.0),
               ShapeError);
  EXPECT_THROW((void)split_norm_rotate(random_tensor({4, 11}, 1), weight, weight,
                                       make_rope_table(4, 4, 1e4, at::kDouble), shape, 1e-6, 1.0),
               ShapeError);
}

TEST(Embed, TakesRowsAndAddsUpTheGradientOfARepeatedToken) {
  at::Tensor table = random_tensor({5, 3}, 1).set_requires_grad(true);
  const at::Tensor ids = at::tensor({4, 0, 4}, at::kLong);
  const at::Tensor rows = embed(table, ids, at::kDouble);
  EXPECT_EQ(max_difference(rows, at::index_select(table, 0, ids)), 0.0);
  const at::Tensor direction = random_tensor({3, 3}, 2);
  rows.backward(direction);
  EXPECT_LE(max_difference(table.grad()[4], direction[0].add(direction[2])), 1e-15);
  EXPECT_EQ(table.grad()[1].abs().max().item<double>(), 0.0);
}

TEST(Embed, SumsManySmallGradientsOfABfloat16Table) {
  // In bf16, 256 + 1 = 256: a sum kept in bf16 would stop growing.
  at::Tensor table = at::zeros({1, 1}, at::kBFloat16).set_requires_grad(true);
  embed(table, at::zeros({1000}, at::kLong), at::kBFloat16).backward(at::ones({1000, 1}, at::kBFloat16));
  EXPECT_NEAR(table.grad().item<double>(), 1000.0, 4.0);
}

TEST(Embed, RejectsAnIdOutsideTheVocabulary) {
  const at::Tensor table = random_tensor({5, 3}, 1);
  EXPECT_THROW((void)embed(table, at::tensor({0, 5}, at::kLong), at::kDouble), ShapeError);
  EXPECT_THROW((void)embed(table, at::tensor({-1}, at::kLong), at::kDouble), ShapeError);
}

}  // namespace
}  // namespace switchyard
