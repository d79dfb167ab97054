// What each router is for: numbers worked out by hand, shares, uniformity.

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/router/prescribed_share.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {
namespace {

std::unique_ptr<Router> make_router(std::string_view name, const RouterShape& shape, const RouterConfig& config = {}) {
  Rng init(4, "init");
  return find_router(name).make(config, shape, init);
}

// Chosen slots of each expert.
at::Tensor loads_E(const Routing& routing) { return routing.offsets_E.diff(); }

TEST(TopK, HandWorked) {
  // One token with logits (0, ln 3, ln 4): probabilities 1/8, 3/8, 4/8.
  const RouterShape shape{.width = 1, .num_experts = 3, .num_chosen = 2, .name_prefix = "gate"};
  for (const WeightNormalization normalize : {WeightNormalization::ChosenSum, WeightNormalization::None}) {
    const auto router = make_router("top_k", shape, {.normalize = normalize});
    Parameter& weight = *router->parameters().at(0);
    EXPECT_EQ(weight.name, "gate.weight");
    weight.master.mutable_data_ptr<float>()[0] = 0.0F;
    weight.master.mutable_data_ptr<float>()[1] = std::log(3.0F);
    weight.master.mutable_data_ptr<float>()[2] = std::log(4.0F);
    const Routing routing = router->route(at::full({1, 1}, 1.0, at::kFloat), {});
    const float* probs = routing.probs_TE.const_data_ptr<float>();
    const float* weights = routing.weights_TK.const_data_ptr<float>();
    const float sum = normalize == WeightNormalization::ChosenSum ? 7.0F / 8 : 1.0F;
    EXPECT_THAT((std::vector<float>{probs[0], probs[1], probs[2]}),
                testing::Pointwise(testing::FloatNear(1e-6F), {.125F, .375F, .5F}));
    EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[0], 2);  // by falling score
    EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[1], 1);
    EXPECT_NEAR(weights[0], .5F / sum, 1e-6);
    EXPECT_NEAR(weights[1], .375F / sum, 1e-6);
  }
}

// B15: softmax scores sum to 1 for any finite logits and do not move when all logits are shifted.
TEST(TopK, HugeAndTinyLogitsStayNormalised) {
  const RouterShape shape{.width = 1, .num_experts = 4, .num_chosen = 2, .name_prefix = "gate"};
  for (const double scale : {1e-20, 1.0, 1e4, 1e30}) {
    const Routing routing =
        make_router("top_k", shape, {.init_deviation = 1.0})->route(at::full({1, 1}, scale, at::kFloat), {});
    EXPECT_NEAR(routing.probs_TE.sum().item<double>(), 1.0, 1e-6);
    EXPECT_NEAR(routing.weights_TK.sum().item<double>(), 1.0, 1e-6);
    // Where the softmax underflows to zeros the second expert is still the second largest logit.
    const at::Tensor order_E = routing.logits_TE.select(0, 0).argsort(-1, true);
    EXPECT_TRUE(routing.ids_TK.select(0, 0).equal(order_E.narrow(0, 0, 2)));
  }
}

at::Tensor offsets_of(std::initializer_list<float> values) {
  at::Tensor offsets_E = at::zeros({static_cast<int64_t>(values.size())}, at::kFloat);
  std::copy(values.begin(), values.end(), offsets_E.mutable_data_ptr<float>());
  return offsets_E;
}

// Offsets correct the choice, never the weights (arXiv 2408.15664).
TEST(TopK, OffsetsChooseAndDoNotWeigh) {
  const RouterShape shape{.width = 1, .num_experts = 3, .num_chosen = 2, .name_prefix = "gate"};
  for (const SelectionScore score : {SelectionScore::Probs, SelectionScore::Logits}) {
    for (const WeightNormalization normalize : {WeightNormalization::ChosenSum, WeightNormalization::None}) {
      const auto router = make_router("top_k", shape, {.normalize = normalize});
      float* rows = router->parameters().at(0)->master.mutable_data_ptr<float>();
      rows[0] = 0.0F;
      rows[1] = std::log(3.0F);
      rows[2] = std::log(4.0F);
      RouteContext context;
      context.selection_offsets_E = offsets_of({5.0F, 0.0F, -5.0F});
      context.selection_score = score;
      const Routing routing = router->route(at::full({1, 1}, 1.0, at::kFloat), context);
      EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[0], 0);
      EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[1], 1);
      const float sum = normalize == WeightNormalization::ChosenSum ? 4.0F / 8 : 1.0F;
      EXPECT_NEAR(routing.weights_TK.const_data_ptr<float>()[0], .125F / sum, 1e-6);
      EXPECT_NEAR(routing.weights_TK.const_data_ptr<float>()[1], .375F / sum, 1e-6);
    }
  }
}

// Logits 30, 5, 0: probabilities of 1.4e-11 and 9e-14 are nothing beside an offset of .5 in fp32, but not equal.
TEST(TopK, OffsetsLeaveSmallProbabilitiesTheirOrder) {
  const RouterShape shape{.width = 1, .num_experts = 3, .num_chosen = 2, .name_prefix = "gate"};
  const auto router = make_router("top_k", shape);
  float* rows = router->parameters().at(0)->master.mutable_data_ptr<float>();
  rows[0] = 30.0F;
  rows[1] = 0.0F;
  rows[2] = 5.0F;
  RouteContext context;
  context.selection_offsets_E = offsets_of({0.0F, 0.5F, 0.5F});
  context.selection_score = SelectionScore::Probs;
  const Routing routing = router->route(at::full({1, 1}, 1.0, at::kFloat), context);
  EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[0], 0);
  EXPECT_EQ(routing.ids_TK.const_data_ptr<int64_t>()[1], 2);
}

// A null that offsets could balance would be none.
TEST(FrozenRandom, OffsetsDoNotChoose) {
  const RouterShape shape{.width = 1, .num_experts = 3, .num_chosen = 1, .name_prefix = "gate"};
  const auto router = make_router("frozen_random", shape);
  const at::Tensor hidden_TD = at::full({1, 1}, 1.0, at::kFloat);
  const Routing without = router->route(hidden_TD, {});
  RouteContext context;
  context.selection_offsets_E = offsets_of({9.0F, 9.0F, 9.0F});
  context.selection_offsets_E.mutable_data_ptr<float>()[without.ids_TK.const_data_ptr<int64_t>()[0]] = -9.0F;
  EXPECT_TRUE(router->route(hidden_TD, context).ids_TK.equal(without.ids_TK));
}

// Offsets may choose experts of which none has a probability in fp32.
TEST(TopK, ChoicesWithoutProbabilityWeighNothing) {
  const RouterShape shape{.width = 1, .num_experts = 3, .num_chosen = 2, .name_prefix = "gate"};
  const auto router = make_router("top_k", shape);
  float* rows = router->parameters().at(0)->master.mutable_data_ptr<float>();
  std::fill_n(rows, 2, -200.0F);
  rows[2] = 0.0F;
  RouteContext context;
  context.selection_offsets_E = offsets_of({500.0F, 500.0F, 0.0F});
  context.selection_score = SelectionScore::Logits;
  const Routing routing = router->route(at::full({1, 1}, 1.0, at::kFloat), context);
  EXPECT_EQ(loads_E(routing).const_data_ptr<int64_t>()[2], 0);
  EXPECT_EQ(routing.weights_TK.abs().max().item<double>(), 0.0);
}

TEST(TopK, InitialWeightsHaveTheDeviationAskedForAndDependOnTheStreamOnly) {
  const RouterShape shape{.width = 64, .num_experts = 64, .num_chosen = 2, .name_prefix = "gate"};
  const auto a = make_router("top_k", shape, {.init_deviation = 0.5});
  const auto b = make_router("frozen_random", shape, {.init_deviation = 0.5});
  EXPECT_NEAR(a->parameters()[0]->master.std().item<double>(), 0.5, 0.02);
  EXPECT_TRUE(a->parameters()[0]->master.equal(b->parameters()[0]->master));
}

TEST(FrozenRandom, SendsGradientToTheHiddenStatesButNotToItsWeight) {
  const RouterShape shape{.width = 6, .num_experts = 4, .num_chosen = 2, .name_prefix = "gate"};
  const auto router = make_router("frozen_random", shape);
  const at::Tensor hidden_TD = Rng(1, "h").normal_tensor({5, 6}, 1.0).set_requires_grad(true);
  router->route(hidden_TD, {}).weights_TK.select(1, 0).sum().backward();
  EXPECT_GT(hidden_TD.grad().abs().max().item<double>(), 0.0);
  EXPECT_FALSE(router->parameters()[0]->compute.grad().defined());
}

TEST(Random, UniformOverExpertsAndPairs) {
  const RouterShape shape{.width = 1, .num_experts = 4, .num_chosen = 2};
  constexpr int64_t kTokens = 24000;
  const Routing routing = make_router("random", shape)->route(at::zeros({kTokens, 1}, at::kFloat), {.seed = 3});
  // 12,000 a bin, deviation 77 for experts; each unordered pair 4,000, deviation 58: five deviations.
  EXPECT_LT(loads_E(routing).sub(12000).abs().max().item<int64_t>(), 400);
  const at::Tensor one_TK = at::full({kTokens, 2}, 1, at::kLong);
  const at::Tensor pair_T = one_TK.bitwise_left_shift(routing.ids_TK).sum(1);  // a bit per expert
  for (const int64_t pair : {3, 5, 6, 9, 10, 12}) EXPECT_NEAR(pair_T.eq(pair).sum().item<double>(), 4000, 300);
}

TEST(Random, SeedStepLayerAndPositionAllMatter) {
  const RouterShape shape{.width = 1, .num_experts = 8, .num_chosen = 2};
  const auto router = make_router("random", shape);
  const at::Tensor hidden_TD = at::zeros({64, 1}, at::kFloat);
  const at::Tensor base_TK = router->route(hidden_TD, {.seed = 1}).ids_TK;
  for (const RouteContext& other :
       {RouteContext{.seed = 2}, RouteContext{.seed = 1, .step = 1}, RouteContext{.seed = 1, .layer = 1},
        RouteContext{.seed = 1, .first_token = 64}, RouteContext{.phase = RoutingPhase::Evaluate, .seed = 1}}) {
    EXPECT_FALSE(router->route(hidden_TD, other).ids_TK.equal(base_TK));
  }
}

TEST(PrescribedShare, HandWorked) {
  // 2 domains, 4 experts, K 1: the first two experts lie around domain 0's place, .25, at .125 and .375.
  const at::Tensor share_NE = prescribed_share_NE(2, 4, 1);
  const std::vector<double> expected = {.5, .5, 0, 0, 0, 0, .5, .5};
  EXPECT_EQ(std::vector<double>(share_NE.const_data_ptr<double>(), share_NE.const_data_ptr<double>() + 8), expected);
  // The demo: 8 domains, 16 experts, K 2: domain d owns experts 2 d and 2 d + 1.
  const at::Tensor demo_NE = prescribed_share_NE(8, 16, 2);
  for (int64_t d = 0; d < 8; ++d) EXPECT_EQ(demo_NE.select(0, d).narrow(0, 2 * d, 2).sum().item<double>(), 2.0);
  // K = E: everything to everyone.
  EXPECT_TRUE(prescribed_share_NE(3, 4, 4).eq(1.0).all().item<bool>());
}

TEST(PrescribedShare, RowsColumnsAndOptimality) {
  EXPECT_TRUE(rc::check("rows K, columns N K / E, no better swap of two cells", [] {
    const auto n = *rc::gen::inRange<int64_t>(1, 9);
    const auto e = *rc::gen::inRange<int64_t>(1, 13);
    const auto k = *rc::gen::inRange<int64_t>(1, e + 1);
    const at::Tensor units_NE = prescribed_units_NE(n, e, k);
    RC_ASSERT(units_NE.sum(1).eq(k * e).all().item<bool>());
    RC_ASSERT(units_NE.sum(0).eq(n * k).all().item<bool>());
    RC_ASSERT(units_NE.ge(0).logical_and(units_NE.le(e)).all().item<bool>());
    const auto cost = [n, e](int64_t d, int64_t expert) {
      const double apart = std::abs((static_cast<double>(d) + .5) / static_cast<double>(n) -
                                    (static_cast<double>(expert) + .5) / static_cast<double>(e));
      return std::pow(std::min(apart, 1 - apart), 2);
    };
    const int64_t* units = units_NE.const_data_ptr<int64_t>();
    for (int64_t a = 0; a < n * e; ++a) {
      for (int64_t b = 0; b < n * e; ++b) {  // move a unit from cells a and b to the two cells across
        const int64_t across_a = (a / e) * e + b % e;
        const int64_t across_b = (b / e) * e + a % e;
        if (units[a] == 0 || units[b] == 0 || units[across_a] == e || units[across_b] == e) continue;
        RC_ASSERT(cost(a / e, b % e) + cost(b / e, a % e) - cost(a / e, a % e) - cost(b / e, b % e) > -1e-12);
      }
    }
  }));
}

TEST(PrescribedShare, ImpossibleSizesAreUsageErrors) {
  EXPECT_THROW(static_cast<void>(prescribed_share_NE(0, 4, 2)), UsageError);
  EXPECT_THROW(static_cast<void>(prescribed_share_NE(2, 4, 5)), UsageError);
  EXPECT_THROW(static_cast<void>(prescribed_share_NE(2, 4, 0)), UsageError);
}

TEST(Prescribed, TokensFollowTheSharesOfTheirDomain) {
  // 3 domains over 7 experts, K 2: shares that are not whole.
  const RouterShape shape{.width = 1, .num_experts = 7, .num_chosen = 2, .num_domains = 3};
  const auto router = make_router("prescribed", shape);
  const at::Tensor share_NE = prescribed_share_NE(3, 7, 2);
  constexpr int64_t kTokens = 20000;
  for (int64_t domain = 0; domain < 3; ++domain) {
    RouteContext context{.seed = 1, .step = domain};
    context.domain_T = at::full({kTokens}, domain, at::kLong);
    const at::Tensor seen_E = loads_E(router->route(at::zeros({kTokens, 1}, at::kFloat), context)).to(at::kDouble).div(kTokens);
    EXPECT_LT(seen_E.sub(share_NE.select(0, domain)).abs().max().item<double>(), 0.02);  // deviation at most .0035
  }
}

TEST(Prescribed, LabelsAreChecked) {
  const RouterShape shape{.width = 1, .num_experts = 4, .num_chosen = 2, .num_domains = 2};
  const at::Tensor hidden_TD = at::zeros({1, 1}, at::kFloat);
  EXPECT_THROW(static_cast<void>(make_router("prescribed", shape)->route(hidden_TD, {})), ShapeError);
  RouteContext context;
  for (const int64_t label : {int64_t{-1}, int64_t{2}}) {
    context.domain_T = at::full({1}, label, at::kLong);
    EXPECT_THROW(static_cast<void>(make_router("prescribed", shape)->route(hidden_TD, context)), ShapeError);
  }
  RouterShape unlabelled = shape;
  unlabelled.num_domains = 0;
  EXPECT_THROW(static_cast<void>(make_router("prescribed", unlabelled)), UsageError);
}

TEST(PrescribedShuffled, ADocumentKeepsItsDomainAndDomainsAreUniform) {
  const RouterShape shape{.width = 1, .num_experts = 8, .num_chosen = 2, .num_domains = 4};
  const auto router = make_router("prescribed_shuffled", shape);
  constexpr int64_t kDocuments = 8000;
  RouteContext context{.seed = 1};
  context.document_T = at::arange(kDocuments, at::kLong);
  const at::Tensor hidden_TD = at::zeros({kDocuments, 1}, at::kFloat);
  const at::Tensor ids_TK = router->route(hidden_TD, context).ids_TK;
  // Domain d owns experts 2 d and 2 d + 1.
  const at::Tensor domain_T = ids_TK.select(1, 0).bitwise_right_shift(1);
  EXPECT_TRUE(domain_T.equal(ids_TK.select(1, 1).bitwise_right_shift(1)));
  for (int64_t domain = 0; domain < 4; ++domain) EXPECT_NEAR(domain_T.eq(domain).sum().item<double>(), 2000, 200);
  context.step = 9;
  context.layer = 3;
  context.phase = RoutingPhase::Evaluate;
  context.first_token = 77;
  EXPECT_TRUE(router->route(hidden_TD, context).ids_TK.select(1, 0).bitwise_right_shift(1).equal(domain_T));
  context.seed = 2;
  EXPECT_FALSE(router->route(hidden_TD, context).ids_TK.select(1, 0).bitwise_right_shift(1).equal(domain_T));
}

TEST(RouterConfig, Spellings) {
  WeightNormalization value{};
  for (const std::string name : {"none", "chosen_sum"}) {
    parse(name, value);
    EXPECT_EQ(to_string(value), name);
  }
  EXPECT_THROW(parse("sum", value), ConfigError);
}

}  // namespace
}  // namespace switchyard
