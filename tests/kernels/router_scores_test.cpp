#include "switchyard/kernels/router_scores.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {
namespace {

using testing::expect_close_in;
using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

SWITCHYARD_ON_EACH_INSTRUCTION_SET(RouterScores);

// One token, odd sizes, several blocks of tokens, more tokens than parts of 512, rows that are whole pages.
constexpr std::array<std::array<int64_t, 3>, 6> kShapes = {
    {{1, 1, 1}, {65, 34, 7}, {33, 5, 3}, {1100, 300, 130}, {8300, 4, 3}, {70, 1024, 16}}};

std::vector<at::Tensor> hidden_and_weight(const std::array<int64_t, 3>& shape) {
  const auto [tokens, width, experts] = shape;
  return {random_tensor({tokens, width}, 1), random_tensor({experts, width}, 2)};
}

TEST_P(RouterScores, EqualTheirReference) {
  for (const auto& shape : kShapes) {
    SCOPED_TRACE(::testing::Message() << shape[0] << " tokens, width " << shape[1] << ", " << shape[2] << " experts");
    const std::vector<at::Tensor> in = hidden_and_weight(shape);
    const auto reference = [](const auto& given) { return router_scores_reference(given[0], given[1]); };
    const auto tested = [](const auto& given) { return router_scores(given[0], given[1].to(at::kFloat)); };
    expect_same_function([](const auto& given) { return router_scores(given[0], given[1]); }, reference, in, 1e-9);
    expect_close_in(at::kFloat, tested, reference, in, 4e-6);
    expect_close_in(at::kBFloat16, [&](const auto& given) { return tested(given).to(at::kBFloat16); }, reference, in, 0.02);
  }
}

struct Result {
  at::Tensor scores_TE, d_hidden_TD, d_weight_ED;
};

Result differentiated(const at::Tensor& hidden, const at::Tensor& weight) {
  const at::Tensor hidden_TD = hidden.detach().clone().set_requires_grad(true), weight_ED = weight.detach().clone().set_requires_grad(true);
  const at::Tensor scores_TE = router_scores(hidden_TD, weight_ED);
  scores_TE.square().sum().backward();
  return {scores_TE.detach(), hidden_TD.grad(), weight_ED.grad()};
}

TEST_P(RouterScores, AreTheSameBitsOnAnyNumberOfThreads) {
  if (!has_tile_products(at::kFloat)) return;
  const int threads = at::get_num_threads();
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    const at::Tensor hidden = random_tensor({9000, 300}, 1).to(type), weight = random_tensor({130, 300}, 2).to(at::kFloat);
    at::set_num_threads(3);
    const Result together = differentiated(hidden, weight);
    at::set_num_threads(1);
    const Result alone = differentiated(hidden, weight);
    at::set_num_threads(threads);
    EXPECT_TRUE(alone.scores_TE.equal(together.scores_TE)) << type;
    EXPECT_TRUE(alone.d_hidden_TD.equal(together.d_hidden_TD)) << type;
    EXPECT_TRUE(alone.d_weight_ED.equal(together.d_weight_ED)) << type;
  }
}

// Near ties are chosen alike where the same hidden states come in another company.
TEST_P(RouterScores, OfATokenDoNotDependOnItsNeighbours) {
  if (!has_tile_products(at::kFloat)) return;
  const at::Tensor weight = random_tensor({17, 50}, 2, at::kFloat);
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    const at::Tensor hidden = random_tensor({700, 50}, 1).to(type), all = router_scores(hidden, weight);
    for (const auto& [begin, count] : {std::array<int64_t, 2>{0, 1}, {3, 64}, {63, 130}, {511, 189}, {699, 1}}) {
      EXPECT_TRUE(router_scores(hidden.narrow(0, begin, count), weight).equal(all.narrow(0, begin, count))) << type << " " << begin;
    }
  }
}

TEST_P(RouterScores, OfNoTokens) {
  const Result result = differentiated(at::empty({0, 3}, at::kBFloat16), random_tensor({2, 3}, 1, at::kFloat));
  EXPECT_EQ(result.scores_TE.sizes(), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(result.d_weight_ED.abs().max().item<double>(), 0.0);
}

// The weight stays fp32, and nothing is rounded but the gradient of the hidden states.
TEST_P(RouterScores, OfBfloat16AreThoseOfTheSameNumbersInFloat32) {
  if (!has_tile_products(at::kFloat)) return;
  const at::Tensor hidden = random_tensor({600, 34}, 1).to(at::kBFloat16), weight = random_tensor({7, 34}, 2, at::kFloat);
  const Result narrow = differentiated(hidden, weight), wide = differentiated(hidden.to(at::kFloat), weight);
  EXPECT_TRUE(narrow.scores_TE.equal(wide.scores_TE));
  EXPECT_TRUE(narrow.d_weight_ED.equal(wide.d_weight_ED));
  EXPECT_TRUE(narrow.d_hidden_TD.equal(wide.d_hidden_TD.to(at::kBFloat16)));
}

// A frozen router: the hidden states' gradient alone, and the other way round. Inputs lie across, and the gradient of a sum is one
// number that stands for all.
TEST_P(RouterScores, AreDifferentiatedInWhatIsTrained) {
  const at::Tensor hidden = random_tensor({4, 70}, 1, at::kFloat), weight = random_tensor({4, 3}, 2, at::kFloat);
  for (const bool of_hidden : {true, false}) {
    const at::Tensor hidden_DT = hidden.clone().set_requires_grad(of_hidden), weight_DE = weight.clone().set_requires_grad(!of_hidden);
    const at::Tensor scores_TE = router_scores(hidden_DT.t(), weight_DE.t());
    EXPECT_LE(max_difference(scores_TE, at::mm(hidden.t(), weight)), 1e-5);
    scores_TE.sum().backward();
    EXPECT_EQ(hidden_DT.grad().defined(), of_hidden);
    EXPECT_EQ(weight_DE.grad().defined(), !of_hidden);
    const at::Tensor gradient = of_hidden ? hidden_DT.grad() : weight_DE.grad();
    const at::Tensor expected = (of_hidden ? weight : hidden).sum(1, /*keepdim=*/true).expand_as(gradient);
    EXPECT_LE(max_difference(gradient, expected), 1e-4);
  }
  EXPECT_FALSE(router_scores(hidden.t(), weight.t()).requires_grad());
}

TEST_P(RouterScores, RejectShapesThatDoNotFit) {
  EXPECT_THROW((void)router_scores(random_tensor({2, 3}, 1), random_tensor({4, 2}, 2)), ShapeError);
}

TEST(LargestIds, AreOrderedAndTheFirstOfEqualOnes) {
  const at::Tensor scores = at::tensor({1.0, 3.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0}, at::kDouble).reshape({2, 4});
  const at::Tensor expected = at::tensor({1, 3, 2, 0, 1, 2}, at::kLong).reshape({2, 3});
  EXPECT_TRUE(largest_ids(scores, 3).equal(expected));
  EXPECT_TRUE(largest_ids(scores.t().contiguous().t(), 3).equal(expected));
}

// Scores of few values, so that many are equal; every K.
TEST(LargestIds, EqualAStableSort) {
  Rng rng(3, "scores");
  for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
    for (const int64_t experts : {int64_t{1}, int64_t{5}, int64_t{24}}) {
      std::vector<double> row(static_cast<size_t>(experts));
      for (double& score : row) score = static_cast<double>(rng.below(7)) - 3.0;
      std::vector<int64_t> order(row.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return row[static_cast<size_t>(a)] > row[static_cast<size_t>(b)]; });
      const at::Tensor scores = at::tensor(row, at::kDouble).to(type).unsqueeze(0);
      for (int64_t chosen = 1; chosen <= experts; ++chosen) {
        const at::Tensor expected = at::tensor(order, at::kLong).narrow(0, 0, chosen).unsqueeze(0);
        EXPECT_TRUE(largest_ids(scores, chosen).equal(expected)) << type << " " << experts << " " << chosen;
      }
    }
  }
}

TEST(LargestIds, OfManyTokensOnSomeThreads) {
  const at::Tensor scores = random_tensor({1500, 24}, 1);
  const int threads = at::get_num_threads();
  at::set_num_threads(3);
  const at::Tensor ids = largest_ids(scores, 5);
  at::set_num_threads(threads);
  EXPECT_TRUE(ids.equal(std::get<1>(at::topk(scores, 5, -1))));
}

TEST(LargestIds, NeverTakeAnExpertTwice) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const at::Tensor ids = largest_ids(at::tensor({nan, 1.0, nan, 2.0}, at::kDouble).unsqueeze(0), 4);
  std::vector<int64_t> sorted(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + 4);
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, (std::vector<int64_t>{0, 1, 2, 3}));
}

TEST(LargestIds, RejectMoreThanThereAre) {
  const at::Tensor scores = random_tensor({2, 3}, 1);
  EXPECT_THROW((void)largest_ids(scores, 4), ShapeError);
  EXPECT_THROW((void)largest_ids(scores, 0), ShapeError);
  EXPECT_THROW((void)largest_ids(scores[0], 1), ShapeError);
}

}  // namespace
}  // namespace switchyard
