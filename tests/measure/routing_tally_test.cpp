#include "switchyard/measure/routing_tally.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using Counts = Matrix<int64_t>;

at::Tensor ints(std::vector<int64_t> values) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kLong).clone();
}

at::Tensor ints(std::vector<int64_t> values, int64_t columns) { return ints(std::move(values)).reshape({-1, columns}); }

at::Tensor probs(std::vector<float> values, int64_t columns) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kFloat).clone().reshape({-1, columns});
}

Routing route(const at::Tensor& ids_TK, int64_t num_experts) {
  return routing_from_top_k(ids_TK, at::full(ids_TK.sizes(), 0.5, at::kFloat), num_experts);
}

TallyShape shape_of(int64_t layers, int64_t domains, int64_t experts, int64_t chosen) {
  return {layers, domains, experts, chosen};
}

template <typename ExpectedError>
void expect_refusal(const std::function<void()>& act, const std::string& part) {
  try {
    act();
    ADD_FAILURE() << "no error; expected one with: " << part;
  } catch (const ExpectedError& error) {
    EXPECT_THAT(error.what(), HasSubstr(part));
  }
}

// Two windows share document 40; the last token is padding.
TEST(RoutingTally, CountsByDocument) {
  RoutingTally tally(shape_of(1, 2, 3, 2));
  tally.begin_batch({ints({1, 1, 1, 1, -1}), ints({70, 70, 40, 40, -1}), {}});
  tally.add(0, route(ints({0, 1, 2, 1, 1, 0, 1, 2, -1, -1}, 2), 3));
  tally.begin_batch({ints({1, 0}), ints({40, 9}), {}});
  tally.add(0, route(ints({2, 0, 0, 2}, 2), 3));

  EXPECT_EQ(tally.num_documents(), 3);
  EXPECT_EQ(tally.domain_X(), (std::vector<int64_t>{1, 1, 0}));
  const LayerTally& layer = tally.layers().at(0);
  EXPECT_EQ(layer.slots_XE, Counts({{1, 2, 1}, {2, 2, 2}, {1, 0, 1}}));
  EXPECT_EQ(layer.first_choice_XE, Counts({{1, 0, 1}, {0, 2, 1}, {1, 0, 0}}));
  ASSERT_EQ(layer.micro_batches.size(), 2u);
  EXPECT_EQ(layer.micro_batches[0], load_metrics(std::vector<int64_t>{2, 4, 2}));
  EXPECT_EQ(layer.micro_batches[1], load_metrics(std::vector<int64_t>{2, 0, 2}));
  EXPECT_EQ(layer.margin_tokens, 0);
}

TEST(RoutingTally, SeparatesMicroBatchesOfOneForward) {
  RoutingTally tally(shape_of(1, 2, 2, 1));
  tally.begin_batch({ints({0, 0, 1, 1}), ints({5, 5, 6, 6}), ints({0, 0, 2, 2})});
  tally.add(0, route(ints({0, 0, 1, 1}, 1), 2));
  const LayerTally& layer = tally.layers().at(0);
  ASSERT_EQ(layer.micro_batches.size(), 2u);  // micro-batch 1 has no slots and counts for nothing
  EXPECT_EQ(layer.micro_batches[0].max_vio, 1.0);
  EXPECT_EQ(layer.micro_batches[1].max_vio, 1.0);
}

TEST(RoutingTally, MatchesAPlainCount) {
  constexpr int64_t kLayers = 3, kExperts = 7, kDomains = 4, kBatches = 6, kTokens = 50;
  RoutingTally tally(shape_of(kLayers, kDomains, kExperts, 2));
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> expected;  // (layer, document number)
  std::vector<int64_t> order;
  Rng rng(4, "tally");
  for (int64_t b = 0; b < kBatches; ++b) {
    std::vector<int64_t> domains, documents;
    for (int64_t t = 0; t < kTokens; ++t) {
      const bool padding = t >= 45;
      documents.push_back(padding ? -1 : 100 + (b + t / 9) % 11);
      domains.push_back(padding ? -1 : documents.back() % kDomains);
      if (!padding && std::find(order.begin(), order.end(), documents.back()) == order.end()) order.push_back(documents.back());
    }
    tally.begin_batch({ints(domains), ints(documents), {}});
    for (int64_t l = kLayers - 1; l >= 0; --l) {
      std::vector<int64_t> ids;
      for (int64_t t = 0; t < kTokens; ++t) {
        const int64_t first = static_cast<int64_t>(rng.below(kExperts));
        const int64_t second = (first + 1 + static_cast<int64_t>(rng.below(kExperts - 1))) % kExperts;
        const int64_t document = documents[static_cast<size_t>(t)];
        ids.push_back(document < 0 ? -1 : first);
        ids.push_back(document < 0 ? -1 : second);
        if (document < 0) continue;
        auto& row = expected[{l, document}];
        row.resize(kExperts);
        ++row[static_cast<size_t>(first)];
        ++row[static_cast<size_t>(second)];
      }
      tally.add(l, route(ints(ids, 2), kExperts));
    }
  }
  ASSERT_EQ(tally.num_documents(), static_cast<int64_t>(order.size()));
  for (int64_t l = 0; l < kLayers; ++l) {
    const LayerTally& layer = tally.layers().at(static_cast<size_t>(l));
    for (int64_t x = 0; x < tally.num_documents(); ++x) {
      const int64_t number = order[static_cast<size_t>(x)];
      EXPECT_EQ(tally.domain_X()[static_cast<size_t>(x)], number % kDomains);
      EXPECT_THAT(layer.slots_XE.row(x), ::testing::ElementsAreArray(expected[{l, number}]));
    }
  }
}

TEST(RoutingTally, MeasuresTheMarginOfValidTokens) {
  RoutingTally tally(shape_of(1, 1, 4, 2));
  tally.begin_batch({ints({0, 0, -1}), ints({1, 1, -1}), {}});
  Routing routing = route(ints({0, 1, 3, 2, -1, -1}, 2), 4);
  // K-th minus (K+1)-th: .25 - .125 and .25 - .25; the padding row is not a distribution and not looked at.
  routing.probs_TE = probs({.5f, .25f, .125f, .125f, .25f, .25f, .25f, .25f, 9.f, 1.f, 0.f, 0.f}, 4).requires_grad_();
  tally.add(0, routing);
  EXPECT_DOUBLE_EQ(tally.layers().at(0).margin_sum, 0.125);
  EXPECT_EQ(tally.layers().at(0).margin_tokens, 2);
}

TEST(RoutingTally, HasNoMarginWhereAllExpertsAreChosen) {
  RoutingTally tally(shape_of(1, 1, 2, 2));
  tally.begin_batch({ints({0}), ints({1}), {}});
  Routing routing = route(ints({0, 1}, 2), 2);
  routing.probs_TE = probs({.5f, .5f}, 2);
  tally.add(0, routing);
  EXPECT_EQ(tally.layers().at(0).margin_tokens, 0);
}

// Expert choice: token 0 has two slots, token 1 none, token 2 one of two that weigh the same.
TEST(RoutingTally, TakesTheHeaviestSlotWhereTheNumberVaries) {
  RoutingTally tally(shape_of(1, 1, 3, 1));
  tally.begin_batch({ints({0, 0, 0}), ints({1, 2, 3}), {}});
  Routing routing;
  routing.token_A = ints({0, 2, 0, 2});
  routing.expert_A = ints({0, 0, 1, 2});
  routing.weight_A = probs({.2f, .4f, .8f, .4f}, 4).reshape({4});
  routing.num_tokens = 3;
  routing.num_experts = 3;
  tally.add(0, routing);
  const LayerTally& layer = tally.layers().at(0);
  EXPECT_EQ(layer.slots_XE, Counts({{1, 1, 0}, {0, 0, 0}, {1, 0, 1}}));
  EXPECT_EQ(layer.first_choice_XE, Counts({{0, 1, 0}, {0, 0, 0}, {1, 0, 0}}));
}

// Requested slots are counted, dropped ones too: capacity must not hide an imbalance.
TEST(RoutingTally, CountsDroppedSlots) {
  RoutingTally tally(shape_of(1, 1, 2, 1));
  tally.begin_batch({ints({0, 0}), ints({1, 1}), {}});
  Routing routing = route(ints({1, 1}, 1), 2);
  routing.kept_A = ints({1, 0}).to(at::kBool);
  tally.add(0, routing);
  EXPECT_EQ(tally.layers().at(0).slots_XE, Counts({{0, 2}}));
}

TEST(RoutingTally, TakesABatchOfPaddingOnly) {
  RoutingTally tally(shape_of(1, 2, 3, 1));
  tally.begin_batch({ints({-1, -1}), ints({-1, -1}), {}});
  tally.add(0, route(ints({-1, -1}, 1), 3));
  EXPECT_EQ(tally.num_documents(), 0);
  EXPECT_TRUE(tally.layers().at(0).micro_batches.empty());
}

TEST(RoutingTally, RefusesBadLabels) {
  RoutingTally tally(shape_of(1, 2, 3, 1));
  const auto begin = [&](TokenLabels labels) { return [&tally, labels] { tally.begin_batch(labels); }; };
  expect_refusal<ShapeError>(begin({}), "domain_T must be");
  expect_refusal<ShapeError>(begin({ints({0, 1}), ints({5}), {}}), "document_T has 1 entries for 2 tokens");
  expect_refusal<ShapeError>(begin({ints({0, 2}), ints({5, 6}), {}}), "token 1 has domain_T 2; expected -1 (padding) to 1");
  expect_refusal<ShapeError>(begin({ints({0, -1}), ints({5, 6}), {}}), "token 1 is padding");
  expect_refusal<ShapeError>(begin({ints({0}).to(at::kInt), ints({5}), {}}), "domain_T must be an int64");
  expect_refusal<ShapeError>(begin({ints({0}), ints({5}), ints({1000000})}), "number them from 0");
  expect_refusal<DataError>(begin({ints({0, 1}), ints({5, 5}), {}}), "document 5 is of domain 0");
}

TEST(RoutingTally, RefusesCallsOutOfOrder) {
  RoutingTally tally(shape_of(2, 1, 3, 1));
  const Routing routing = route(ints({0}, 1), 3);
  expect_refusal<StateError>([&] { tally.add(0, routing); }, "begin_batch() before each forward");
  tally.begin_batch({ints({0}), ints({5}), {}});
  tally.add(0, routing);
  expect_refusal<StateError>([&] { tally.add(0, routing); }, "layer 0 was added already");
  expect_refusal<StateError>([&] { (void)tally.layers(); }, "no routing of MoE layer 1");
  expect_refusal<StateError>([&] { tally.begin_batch({ints({0}), ints({5}), {}}); }, "no routing of MoE layer 1");
  expect_refusal<ShapeError>([&] { tally.add(2, routing); }, "MoE layer 2; expected 0 to 1");
  tally.add(1, routing);
  EXPECT_EQ(tally.layers().size(), 2u);
}

TEST(RoutingTally, RefusesARoutingThatDoesNotFit) {
  RoutingTally tally(shape_of(1, 1, 3, 1));
  tally.begin_batch({ints({0, -1}), ints({5, -1}), {}});
  expect_refusal<ShapeError>([&] { tally.add(0, route(ints({0}, 1), 3)); }, "1 tokens over 3 experts; expected 2 and 3");
  expect_refusal<ShapeError>([&] { tally.add(0, route(ints({0, -1}, 1), 4)); }, "expected 2 and 3");
  expect_refusal<ShapeError>([&] { tally.add(0, route(ints({0, 1}, 1), 3)); }, "padding token 1 has a slot");
  EXPECT_THROW(RoutingTally(shape_of(0, 1, 3, 1)), ShapeError);
  EXPECT_THROW(RoutingTally(shape_of(1, 1, 3, 4)), ShapeError);
}

TEST(RoutingTally, RefusesScoresThatAreNotFinite) {
  RoutingTally tally(shape_of(1, 1, 4, 1));
  tally.begin_batch({ints({0}), ints({5}), {}});
  Routing routing = route(ints({2}, 1), 4);
  routing.probs_TE = probs({.1f, std::nanf(""), .2f, .3f}, 4);
  expect_refusal<ShapeError>([&] { tally.add(0, routing); }, "not finite");
}

}  // namespace
}  // namespace switchyard
