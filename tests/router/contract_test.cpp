// The contract of a router, run over every line of router_table(): a new router gets these tests by being listed.

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <set>
#include <tuple>

#include "switchyard/core/error.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {
namespace {

constexpr int64_t kWidth = 6;
constexpr int64_t kDomains = 3;
constexpr int64_t kNumTokens = 23;

at::Tensor int_tensor(const std::vector<int64_t>& values) {
  at::Tensor result = at::full({static_cast<int64_t>(values.size())}, 0, at::kLong);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

// Tokens in documents of five, domains in turn; every token whose number leaves 3 when divided by 7 is padding.
RouteContext context_of(int64_t num_tokens) {
  std::vector<int64_t> domains;
  std::vector<int64_t> documents;
  at::Tensor valid_T = at::full({num_tokens}, true, at::kBool);
  for (int64_t token = 0; token < num_tokens; ++token) {
    const bool padding = token % 7 == 3;
    documents.push_back(padding ? -1 : 100 + token / 5);
    domains.push_back(padding ? -1 : (token / 5) % kDomains);
    valid_T.mutable_data_ptr<bool>()[token] = !padding;
  }
  RouteContext context{.phase = RoutingPhase::Train, .seed = 5, .step = 2, .layer = 1, .first_token = 40};
  context.token_T = at::arange(num_tokens, at::kLong);
  context.domain_T = int_tensor(domains);
  context.document_T = int_tensor(documents);
  context.valid_T = valid_T;
  return context;
}

RouteContext without_padding(RouteContext context) {
  context.valid_T = at::Tensor();
  context.domain_T = context.domain_T.clamp_min(0);
  context.document_T = context.document_T.clamp_min(0);
  return context;
}

at::Tensor hidden_of(int64_t num_tokens, at::ScalarType type) {
  return Rng(9, "hidden").normal_tensor({num_tokens, kWidth}, 1.0).to(type).set_requires_grad(true);
}

RouterShape shape_of(int64_t num_experts, int64_t num_chosen) {
  return {.width = kWidth,
          .num_experts = num_experts,
          .num_chosen = num_chosen,
          .num_domains = kDomains,
          .layer = 1,
          .name_prefix = "model.layers.1.mlp.gate"};
}

std::unique_ptr<Router> make_router(const RouterEntry& entry, const RouterShape& shape, RouterConfig config = {}) {
  Rng init(4, "init");
  return entry.make(config, shape, init);
}

// Which experts each token goes to, bool [T, E].
at::Tensor chosen(const Routing& routing) {
  at::Tensor chosen_TE = at::full({routing.num_tokens, routing.num_experts}, false, at::kBool);
  const int64_t* tokens = routing.token_A.const_data_ptr<int64_t>();
  const int64_t* experts = routing.expert_A.const_data_ptr<int64_t>();
  for (int64_t slot = 0; slot < routing.token_A.size(0); ++slot) {
    chosen_TE.mutable_data_ptr<bool>()[tokens[slot] * routing.num_experts + experts[slot]] = true;
  }
  return chosen_TE;
}

class RouterContract : public testing::TestWithParam<std::tuple<size_t, at::ScalarType>> {
 protected:
  [[nodiscard]] static const RouterEntry& entry() { return router_table().at(std::get<0>(GetParam())); }
  [[nodiscard]] static at::ScalarType type() { return std::get<1>(GetParam()); }
  [[nodiscard]] static at::ScalarType scores() { return type() == at::kDouble ? at::kDouble : at::kFloat; }

  // Everything that must hold of any routing.
  static void check_routing(const Routing& routing, const RouteContext& context, const RouterShape& shape) {
    const int64_t num_tokens = routing.num_tokens;
    const at::Tensor valid_T = context.valid_T.defined() ? context.valid_T : at::full({num_tokens}, true, at::kBool);
    ASSERT_EQ(routing.num_experts, shape.num_experts);
    ASSERT_EQ(routing.offsets_E.size(0), shape.num_experts + 1);
    const int64_t* offsets = routing.offsets_E.const_data_ptr<int64_t>();
    ASSERT_EQ(offsets[0], 0);
    ASSERT_EQ(offsets[shape.num_experts], routing.token_A.size(0));
    std::vector<std::set<int64_t>> experts_of(static_cast<size_t>(num_tokens));
    for (int64_t expert = 0; expert < shape.num_experts; ++expert) {
      for (int64_t slot = offsets[expert]; slot < offsets[expert + 1]; ++slot) {
        const int64_t token = routing.token_A.const_data_ptr<int64_t>()[slot];
        EXPECT_EQ(routing.expert_A.const_data_ptr<int64_t>()[slot], expert);
        EXPECT_TRUE(experts_of.at(static_cast<size_t>(token)).insert(expert).second) << "token " << token << " twice";
      }
    }
    for (int64_t token = 0; token < num_tokens; ++token) {
      const bool valid = valid_T.const_data_ptr<bool>()[token];
      EXPECT_EQ(experts_of[static_cast<size_t>(token)].size(), valid ? static_cast<size_t>(shape.num_chosen) : 0U);
    }
    ASSERT_EQ(routing.weight_A.scalar_type(), scores());
    check_scores(routing, shape);
    check_fixed_k(routing, valid_T, shape);
  }

  static void check_scores(const Routing& routing, const RouterShape& shape) {
    for (const at::Tensor& score_TE : {routing.logits_TE, routing.probs_TE}) {
      if (!score_TE.defined()) continue;
      EXPECT_EQ(score_TE.scalar_type(), scores());
      EXPECT_EQ(score_TE.sizes(), (std::vector<int64_t>{routing.num_tokens, shape.num_experts}));
    }
    if (!routing.probs_TE.defined()) return;
    EXPECT_TRUE(routing.probs_TE.ge(0).all().item<bool>());
    EXPECT_LT(routing.probs_TE.sum(1).sub(1).abs().max().item<double>(), 1e-6);
  }

  // Routers of a fixed K also give ids and weights by token; chosen_sum makes the weights sum to 1.
  static void check_fixed_k(const Routing& routing, const at::Tensor& valid_T, const RouterShape& shape) {
    if (!routing.ids_TK.defined()) return;
    ASSERT_EQ(routing.ids_TK.size(1), shape.num_chosen);
    EXPECT_TRUE(routing.ids_TK.lt(0).all(1).eq(valid_T.logical_not()).all().item<bool>());
    const at::Tensor sums_T = routing.weights_TK.sum(1).detach();
    EXPECT_LT(sums_T.sub(valid_T.to(sums_T.scalar_type())).abs().max().item<double>(), 1e-6);
  }
};

TEST_P(RouterContract, RoutingIsWellFormed) {
  for (const auto& [num_experts, num_chosen] :
       std::vector<std::pair<int64_t, int64_t>>{{4, 1}, {4, 2}, {7, 3}, {5, 5}, {1, 1}}) {
    const RouterShape shape = shape_of(num_experts, num_chosen);
    for (const int64_t num_tokens : {int64_t{1}, kNumTokens}) {
      const RouteContext context = context_of(num_tokens);
      check_routing(make_router(entry(), shape)->route(hidden_of(num_tokens, type()), context), context, shape);
      const RouteContext full = without_padding(context);
      check_routing(make_router(entry(), shape)->route(hidden_of(num_tokens, type()), full), full, shape);
    }
  }
}

TEST_P(RouterContract, PaddingOnly) {
  RouteContext context = context_of(6);
  context.valid_T.fill_(false);
  context.domain_T.fill_(-1);
  context.document_T.fill_(-1);
  const Routing routing = make_router(entry(), shape_of(4, 2))->route(hidden_of(6, type()), context);
  EXPECT_EQ(routing.token_A.size(0), 0);
  check_routing(routing, context, shape_of(4, 2));
}

TEST_P(RouterContract, SameContextSameChoiceAndCountingChoosesAsTraining) {
  const auto router = make_router(entry(), shape_of(7, 3));
  RouteContext context = context_of(kNumTokens);
  const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
  const Routing first = router->route(hidden_TD, context);
  const Routing second = router->route(hidden_TD, context);
  context.phase = RoutingPhase::Count;
  const Routing counted = router->route(hidden_TD.detach(), context);
  for (const Routing* other : {&second, &counted}) {
    EXPECT_TRUE(first.token_A.equal(other->token_A));
    EXPECT_TRUE(first.expert_A.equal(other->expert_A));
    EXPECT_TRUE(first.weight_A.equal(other->weight_A));
  }
}

TEST_P(RouterContract, EvaluationRepeatsAtAnyStepAndLeavesNoTrace) {
  const auto router = make_router(entry(), shape_of(7, 3));
  const RouteContext train = context_of(kNumTokens);
  RouteContext evaluate = train;
  evaluate.phase = RoutingPhase::Evaluate;
  const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
  const Routing before = router->route(hidden_TD, train);
  const Routing first = router->route(hidden_TD, evaluate);
  evaluate.step += 1000;
  EXPECT_TRUE(first.expert_A.equal(router->route(hidden_TD, evaluate).expert_A));
  EXPECT_TRUE(before.expert_A.equal(router->route(hidden_TD, train).expert_A));
}

TEST_P(RouterContract, AForwardInTwoHalvesChoosesAsOne) {
  const auto router = make_router(entry(), shape_of(7, 3));
  const RouteContext whole = context_of(kNumTokens);
  const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
  const at::Tensor chosen_TE = chosen(router->route(hidden_TD, whole));
  RouteContext half = whole;
  const int64_t begin = 9;
  const int64_t length = kNumTokens - begin;
  half.first_token += begin;
  for (at::Tensor* labels : {&half.token_T, &half.domain_T, &half.document_T, &half.valid_T}) {
    *labels = labels->narrow(0, begin, length);
  }
  const Routing second_half = router->route(hidden_TD.narrow(0, begin, length), half);
  EXPECT_TRUE(chosen(second_half).equal(chosen_TE.narrow(0, begin, length)));
}

// Labels may be columns of a table.
TEST_P(RouterContract, LabelsOfAnyStrideChooseAlike) {
  const auto router = make_router(entry(), shape_of(7, 3));
  RouteContext context = context_of(kNumTokens);
  context.position_T = context.token_T.mul(3).add(11);
  const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
  const at::Tensor chosen_TE = chosen(router->route(hidden_TD, context));
  for (at::Tensor* labels : {&context.token_T, &context.domain_T, &context.document_T, &context.valid_T, &context.position_T}) {
    *labels = at::stack({*labels, labels->flip(0)}, 1).select(1, 0);
  }
  EXPECT_TRUE(chosen(router->route(hidden_TD, context)).equal(chosen_TE));
}

TEST_P(RouterContract, ReplayUsesTheRecordedChoices) {
  const auto router = make_router(entry(), shape_of(7, 3));
  RouteContext context = context_of(kNumTokens);
  const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
  const Routing recorded = router->route(hidden_TD, context);
  if (!recorded.ids_TK.defined()) return;  // choices are recorded by token for a fixed K only
  context.replay_ids_TK = at::where(recorded.ids_TK.lt(0), recorded.ids_TK, recorded.ids_TK.add(1).remainder(7));
  const Routing replayed = router->route(hidden_TD, context);
  EXPECT_TRUE(replayed.ids_TK.equal(context.replay_ids_TK));
  check_routing(replayed, context, shape_of(7, 3));
  if (!replayed.probs_TE.defined()) return;
  const at::Tensor chosen_TK = replayed.probs_TE.gather(1, context.replay_ids_TK.clamp_min(0));
  const at::Tensor expected_TK = chosen_TK.div(chosen_TK.sum(1, true)).masked_fill(context.replay_ids_TK.lt(0), 0.0);
  EXPECT_LT(replayed.weights_TK.sub(expected_TK).abs().max().item<double>(), 1e-6);
}

TEST_P(RouterContract, ParametersFollowTheirPrefixAndTraining) {
  const auto router = make_router(entry(), shape_of(7, 3));
  for (const Parameter* parameter : router->parameters()) {
    EXPECT_TRUE(parameter->name.starts_with("model.layers.1.mlp.gate")) << parameter->name;
    EXPECT_EQ(parameter->master.scalar_type(), at::kFloat);
    EXPECT_EQ(parameter->compute.requires_grad(), parameter->training == Training::Trained);
    EXPECT_EQ(parameter->master.const_data_ptr(), parameter->compute.const_data_ptr());
  }
}

// A loss on the combine weights, as the experts make one, reaches every trained weight; frozen ones stay out of the graph.
TEST_P(RouterContract, GradientReachesTrainedWeights) {
  const auto router = make_router(entry(), shape_of(7, 3));
  const Routing routing = router->route(hidden_of(kNumTokens, type()), context_of(kNumTokens));
  EXPECT_EQ(entry().balancing == TakesBalancing::Yes, routing.weight_A.requires_grad() && !router->parameters().empty() &&
                                                          router->parameters()[0]->training == Training::Trained);
  if (!routing.weight_A.requires_grad()) return;
  routing.weight_A.mul(at::arange(routing.weight_A.size(0)).to(scores())).sum().backward();
  for (const Parameter* parameter : router->parameters()) {
    EXPECT_EQ(parameter->compute.grad().defined(), parameter->training == Training::Trained);
    if (parameter->training == Training::Frozen) continue;
    EXPECT_GT(parameter->compute.grad().abs().max().item<double>(), 0.0);
  }
}

// A balancing coefficient that enters at the probabilities (or logits) reaches the weights and the hidden states.
TEST_P(RouterContract, BalancingEntersWhereTheTableSaysSo) {
  for (const bool at_logits : {false, true}) {
    const auto router = make_router(entry(), shape_of(7, 3));
    RouteContext context = context_of(kNumTokens);
    at::Tensor passed_TE;
    const auto keep = [&passed_TE](const at::Tensor& scores_TE) { return passed_TE = scores_TE; };
    (at_logits ? context.through_logits : context.through_probs) = keep;
    const at::Tensor hidden_TD = hidden_of(kNumTokens, type());
    const Routing routing = router->route(hidden_TD, context);
    ASSERT_EQ(passed_TE.defined(), entry().balancing == TakesBalancing::Yes);
    if (!passed_TE.defined()) continue;
    EXPECT_TRUE(passed_TE.equal(at_logits ? routing.logits_TE : routing.probs_TE));
    passed_TE.select(1, 0).sum().backward();
    EXPECT_GT(hidden_TD.grad().abs().max().item<double>(), 0.0);
    EXPECT_GT(router->parameters().at(0)->compute.grad().abs().max().item<double>(), 0.0);
  }
}

// What through_probs returns is what the router goes on with: otherwise the identity would hang beside the graph. A router
// that takes no balancing does not let it in at all.
TEST_P(RouterContract, TheWeightsAreMadeFromWhatTheIdentityReturns) {
  const bool balanced = entry().balancing == TakesBalancing::Yes;
  const auto router = make_router(entry(), shape_of(4, 2), {.normalize = WeightNormalization::None});
  RouteContext context = context_of(kNumTokens);
  const Routing plain = router->route(hidden_of(kNumTokens, type()), context);
  context.through_probs = [](const at::Tensor& probs_TE) { return probs_TE.mul(2.0); };
  const Routing doubled = router->route(hidden_of(kNumTokens, type()), context);
  EXPECT_TRUE(doubled.weight_A.equal(plain.weight_A.mul(balanced ? 2.0 : 1.0)));
  context.through_probs = nullptr;
  context.through_logits = [](const at::Tensor& logits_TE) { return at::zeros_like(logits_TE); };
  const Routing uniform = router->route(hidden_of(kNumTokens, type()), context);
  if (!balanced) return;
  EXPECT_LT(uniform.probs_TE.sub(0.25).abs().max().item<double>(), 1e-6);
}

// A selection rule acts through offsets alone: a router that let them lie would train unbalanced and not say so.
TEST_P(RouterContract, OffsetsDecideTheChoiceAndNotTheWeights) {
  if (entry().balancing != TakesBalancing::Yes) return;  // no rule is accepted with those (RunConfig::validate)
  const auto router = make_router(entry(), shape_of(4, 2), {.normalize = WeightNormalization::None});
  RouteContext context = context_of(kNumTokens);
  context.selection_offsets_E = at::zeros({4}, at::kFloat);
  context.selection_offsets_E.narrow(0, 1, 2).fill_(1e4);
  for (const SelectionScore score : {SelectionScore::Probs, SelectionScore::Logits}) {
    context.selection_score = score;
    const Routing routing = router->route(hidden_of(kNumTokens, type()), context);
    const at::Tensor load_E = routing.offsets_E.diff();
    EXPECT_EQ(load_E.narrow(0, 1, 2).sum().item<int64_t>(), load_E.sum().item<int64_t>());
    EXPECT_GT(load_E.sum().item<int64_t>(), 0);
    EXPECT_LE(routing.weight_A.abs().max().item<double>(), 1.0);
  }
}

TEST_P(RouterContract, BadInputIsNamed) {
  EXPECT_THROW(static_cast<void>(make_router(entry(), shape_of(4, 5))), UsageError);
  EXPECT_THROW(static_cast<void>(make_router(entry(), shape_of(4, 0))), UsageError);
  const auto router = make_router(entry(), shape_of(4, 2));
  const RouteContext context = context_of(kNumTokens);
  EXPECT_THROW(static_cast<void>(router->route(hidden_of(kNumTokens, type()).narrow(1, 0, 3), context)), ShapeError);
  EXPECT_THROW(static_cast<void>(router->route(hidden_of(kNumTokens, type()).to(at::kLong), context)), ShapeError);
  RouteContext short_context = context;
  short_context.valid_T = short_context.valid_T.narrow(0, 0, 3);
  EXPECT_THROW(static_cast<void>(router->route(hidden_of(kNumTokens, type()), short_context)), ShapeError);
}

std::string case_name(const testing::TestParamInfo<RouterContract::ParamType>& test_case) {
  const at::ScalarType type = std::get<1>(test_case.param);
  const std::string_view type_name = type == at::kDouble ? "double" : type == at::kFloat ? "fp32" : "bf16";
  return join_text(router_table().at(std::get<0>(test_case.param)).name, "_", type_name);
}

INSTANTIATE_TEST_SUITE_P(AllRouters, RouterContract,
                         testing::Combine(testing::Range<size_t>(0, router_table().size()),
                                          testing::Values(at::kFloat, at::kDouble, at::kBFloat16)),
                         case_name);

TEST(RouterTable, NamesAreUniqueAndFound) {
  std::set<std::string_view> names;
  for (const RouterEntry& entry : router_table()) {
    EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
    EXPECT_FALSE(entry.description.empty() || entry.source.empty());
    EXPECT_EQ(find_router(entry.name).make, entry.make);
  }
}

TEST(RouterTable, AnUnknownNameIsAConfigErrorWithTheNearest) {
  try {
    static_cast<void>(find_router("topk"));
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("did you mean 'top_k'?"));
    EXPECT_THAT(error.what(), testing::HasSubstr("frozen_random"));
  }
}

}  // namespace
}  // namespace switchyard
