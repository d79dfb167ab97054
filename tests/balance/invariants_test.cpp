// The invariants of reference/balance_peers.md, section B, that concern one process: each is a bug that somebody shipped.
// B2 is the invariant of megatron-lm #7213, and so on; the names say what must hold.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dense_oracle.hpp"
#include "explicit_routing.hpp"

namespace switchyard::toy {
namespace {

constexpr double kTolerance = 1e-12;

BalanceConfig config_of(ScopeKind kind, double coefficient = 0.7) {
  return {.method = "lbl",
          .scope = {.kind = kind, .num_sequences = 2, .decay = 0.9},
          .coefficient = coefficient,
          .z_coefficient = 0.0,
          .weighting = GroupWeighting::Tokens,
          .layers = LayerReduction::Mean};
}

std::vector<ScopeKind> all_kinds() {
  std::vector<ScopeKind> kinds;
  for (const ScopeInfo& info : scope_table()) kinds.push_back(info.kind);
  return kinds;
}

// `count` tokens that repeat the same pattern of four: half of the slots go to expert 0, a quarter each to 1 and 2.
std::vector<Token> repeated_tokens(int64_t count) {
  const std::vector<double> probs = {.4, .3, .2, .1};
  std::vector<Token> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back({0, {i % 2 == 0 ? 0 : 1 + (i / 2) % 2}, probs});
  return tokens;
}

at::Tensor slice_rows(const at::Tensor& rows, const std::vector<std::pair<int64_t, int64_t>>& ranges) {
  std::vector<at::Tensor> parts;
  for (const auto& [begin, length] : ranges) parts.push_back(rows.narrow(0, begin, length));
  at::Tensor joined = at::empty({0}, rows.options());
  int64_t total = 0;
  for (const at::Tensor& part : parts) total += part.size(0);
  joined = at::empty({total, rows.size(1)}, rows.options());
  int64_t at_row = 0;
  for (const at::Tensor& part : parts) {
    joined.narrow(0, at_row, part.size(0)).copy_(part);
    at_row += part.size(0);
  }
  return joined;
}

// The model with its tokens rearranged; leaves again.
ToyModel pick_tokens(const ToyModel& model, const std::vector<std::pair<int64_t, int64_t>>& ranges) {
  ToyModel picked = model;
  picked.hidden_TD = slice_rows(model.hidden_TD.detach(), ranges).set_requires_grad(true);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    picked.router_LED[layer] = model.router_LED[layer].detach().clone().set_requires_grad(true);
    picked.offset_LTE[layer] = slice_rows(model.offset_LTE[layer].detach(), ranges).set_requires_grad(true);
  }
  return picked;
}

void expect_finite(const StepResult& result) {
  EXPECT_TRUE(result.gradients.hidden_TD.isfinite().all().item<bool>());
  for (const double value : result.values.lbl_L) EXPECT_TRUE(std::isfinite(value));
}

TEST(Invariants, B2FractionsSumToOneAfterEveryMicroBatchOfThePrefix) {
  const StepBalance step =
      explicit_step(config_of(ScopeKind::Prefix, 1.0), {repeated_tokens(6), {{-1, {0}, {1, 0, 0, 0}}}, repeated_tokens(4)},
                    explicit_plan({{6}, {0}, {4}}), 4);
  // The row is lambda E f w / T_g; with lambda 1 and w / T_g = 1 / T_step the fractions are row * T_step / E.
  EXPECT_NEAR(step.coefficients_SE(0, 0).sum().item<double>() * 10 / 4, 1.0, kTolerance);
  EXPECT_NEAR(step.coefficients_SE(2, 0).sum().item<double>() * 10 / 4, 1.0, kTolerance);
}

TEST(Invariants, B2ResplittingWithEqualFrequenciesLeavesTheValue) {
  for (const ScopeKind kind : {ScopeKind::Prefix, ScopeKind::MicroBatch, ScopeKind::OptimizerBatch}) {
    const auto even = explicit_step(config_of(kind), {repeated_tokens(4), repeated_tokens(4), repeated_tokens(8)},
                                    explicit_plan({{4}, {4}, {8}}), 4);
    const auto uneven = explicit_step(config_of(kind), {repeated_tokens(8), repeated_tokens(4), repeated_tokens(4)},
                                      explicit_plan({{8}, {4}, {4}}), 4);
    EXPECT_NEAR(even.values().lbl_L[0], 4 * (.5 * .4 + .25 * .3 + .25 * .2), kTolerance);
    EXPECT_NEAR(uneven.values().lbl_L[0], even.values().lbl_L[0], kTolerance);
  }
}

TEST(Invariants, B4MicroBatchesEqualOneBatch) {
  const Layout layout = uneven_layout();
  const ToyModel model = make_model(11, layout.num_tokens());
  for (const ScopeKind kind : all_kinds()) {
    const auto one = run_step(model, layout, config_of(kind), plan_of(layout, Partition::Together), some_history(2));
    for (const Averaging contract : {Averaging::Sum, Averaging::Mean, Averaging::ByTokens}) {
      const auto many =
          run_step(model, layout, config_of(kind), plan_of(layout, Partition::Separate, contract), some_history(2));
      EXPECT_LT(max_difference(one.gradients, many.gradients), kTolerance);
    }
  }
}

TEST(Invariants, B4PartitionIntoMicroBatchesDoesNotMatterForStepScopes) {
  const Layout many = make_layout({{6, 2}, {3}, {5, 7}, {4}});
  const Layout few = make_layout({{6, 2, 3, 5}, {7, 4}});
  const ToyModel model = make_model(12, many.num_tokens());
  using enum ScopeKind;
  for (const ScopeKind kind : {Sequence, Sequences, OptimizerBatch, PreviousStep, Ema}) {
    const auto a = run_step(model, many, config_of(kind), plan_of(many, Partition::Separate), some_history(2));
    const auto b = run_step(model, few, config_of(kind), plan_of(few, Partition::Separate), some_history(2));
    EXPECT_LT(max_difference(a.gradients, b.gradients), kTolerance);
    EXPECT_NEAR(a.values.weighted_loss, b.values.weighted_loss, kTolerance);
  }
}

TEST(Invariants, B5GradientIsLinearInTheCoefficient) {
  const Layout layout = uneven_layout();
  const ToyModel model = make_model(13, layout.num_tokens());
  const StepPlan plan = plan_of(layout, Partition::Separate);
  for (const ScopeKind kind : all_kinds()) {
    const auto none = run_step(model, layout, config_of(kind, 0.0), plan, some_history(2)).gradients.hidden_TD;
    const auto one = run_step(model, layout, config_of(kind, 0.5), plan, some_history(2)).gradients.hidden_TD.sub(none);
    const auto four = run_step(model, layout, config_of(kind, 2.0), plan, some_history(2)).gradients.hidden_TD.sub(none);
    EXPECT_LT(max_abs_difference(one.mul(4.0), four), kTolerance);
    EXPECT_GT(one.abs().max().item<double>(), 1e-4);
  }
}

TEST(Invariants, B5CoefficientZeroChangesNoBit) {
  const Layout layout = uneven_layout();
  const ToyModel model = make_model(14, layout.num_tokens());
  const StepPlan plan = plan_of(layout, Partition::Separate);
  BalanceConfig off = config_of(ScopeKind::OptimizerBatch, 0.0);
  const auto zero = run_step(model, layout, off, plan);
  off.method = "none";
  const auto none = run_step(model, layout, off, plan);
  EXPECT_EQ(max_difference(zero.gradients, none.gradients), 0.0);
  EXPECT_EQ(zero.values.lbl_L.size(), 2U);  // still measured
  EXPECT_EQ(zero.values.weighted_loss, 0.0);
  EXPECT_TRUE(none.values.lbl_L.empty());
}

TEST(Invariants, B7AForwardRunTwiceCountsOnceAndChangesNoBit) {
  const Layout layout = uneven_layout();
  const ToyModel model = make_model(15, layout.num_tokens());
  const StepPlan plan = plan_of(layout, Partition::Separate);
  for (const ScopeKind kind : all_kinds()) {
    const auto once = run_step(model, layout, config_of(kind), plan, some_history(2), Order::Retain);
    const auto twice = run_step(model, layout, config_of(kind), plan, some_history(2), Order::Prepass);
    EXPECT_TRUE(once.counts_LE.equal(twice.counts_LE));
    EXPECT_EQ(once.values.lbl_L, twice.values.lbl_L);
    EXPECT_EQ(once.values.weighted_loss, twice.values.weighted_loss);
    for (size_t i = 0; i < once.coefficients.size(); ++i) EXPECT_TRUE(once.coefficients[i].equal(twice.coefficients[i]));
    EXPECT_TRUE(once.state.previous_counts_LE.equal(twice.state.previous_counts_LE));
  }
}

TEST(Invariants, B8CountsAreTheChoicesThatWereUsedNotTheLargestProbabilities) {
  const std::vector<Token> biased = {{0, {1}, {.9, .1}}, {0, {1}, {.8, .2}}};
  const StepBalance step = explicit_step(config_of(ScopeKind::OptimizerBatch), {biased}, explicit_plan({{2}}), 2);
  EXPECT_THAT(doubles_of(step.step_counts_LE()), testing::ElementsAre(0, 2));
  EXPECT_NEAR(step.values().lbl_L[0], 2 * .15, kTolerance);
}

TEST(Invariants, B9AppendedPaddingChangesNothing) {
  const Layout plain = make_layout({{6, 2}, {3}});
  const Layout padded = make_layout({{6, 2, -3}, {3, -4, 0}, {-2}});
  const ToyModel padded_model = make_model(16, padded.num_tokens());
  const ToyModel plain_model = pick_tokens(padded_model, {{0, 8}, {11, 3}});
  for (const ScopeKind kind : all_kinds()) {
    for (const GroupWeighting weighting : {GroupWeighting::Mean, GroupWeighting::Tokens}) {
      BalanceConfig config = config_of(kind);
      config.weighting = weighting;
      config.z_coefficient = 0.3;
      const auto a = run_step(plain_model, plain, config, plan_of(plain, Partition::Separate), some_history(2));
      const auto b = run_step(padded_model, padded, config, plan_of(padded, Partition::Separate), some_history(2));
      EXPECT_LT(max_abs_difference(a.gradients.router_LED[0], b.gradients.router_LED[0]), kTolerance);
      EXPECT_LT(max_abs_difference(a.gradients.hidden_TD, slice_rows(b.gradients.hidden_TD, {{0, 8}, {11, 3}})), kTolerance);
      EXPECT_EQ(b.gradients.hidden_TD.narrow(0, 8, 3).abs().max().item<double>(), 0.0);
      EXPECT_TRUE(a.counts_LE.equal(b.counts_LE));
      EXPECT_NEAR(a.values.weighted_loss, b.values.weighted_loss, kTolerance);
    }
  }
}

TEST(Invariants, B9AStepOfPaddingOnlyGivesZerosAndLeavesTheState) {
  const Layout layout = make_layout({{-4}, {0, -2}});
  const ToyModel model = make_model(17, layout.num_tokens());
  for (const ScopeKind kind : all_kinds()) {
    const auto result = run_step(model, layout, config_of(kind), plan_of(layout, Partition::Separate), some_history(2));
    expect_finite(result);
    EXPECT_EQ(result.gradients.hidden_TD.abs().max().item<double>(), 0.0);
    EXPECT_EQ(result.values.weighted_loss, 0.0);
    EXPECT_TRUE(result.state.previous_counts_LE.equal(some_history(2).previous_counts_LE));
  }
}

TEST(Invariants, B10B11PackedEqualsPaddedEqualsALoopOverDocuments) {
  const Layout packed = make_layout({{5, 2, 4}});
  const Layout rows = make_layout({{5}, {2, -3}, {4, -1}});
  const ToyModel packed_model = make_model(18, packed.num_tokens());
  const ToyModel rows_model = pick_tokens(packed_model, {{0, 7}, {0, 3}, {7, 4}, {0, 1}});
  const BalanceConfig config = config_of(ScopeKind::Sequence);
  const auto a = run_step(packed_model, packed, config, plan_of(packed, Partition::Together));
  const auto b = run_step(rows_model, rows, config, plan_of(rows, Partition::Separate));
  EXPECT_LT(max_abs_difference(a.gradients.hidden_TD, slice_rows(b.gradients.hidden_TD, {{0, 7}, {10, 4}})), kTolerance);

  std::vector<double> lbl_L(kLayers, 0.0);
  for (const auto& [begin, length] : std::vector<std::pair<int64_t, int64_t>>{{0, 5}, {5, 2}, {7, 4}}) {
    const Layout document = make_layout({{length}});
    const auto alone =
        run_step(pick_tokens(packed_model, {{begin, length}}), document, config, plan_of(document, Partition::Together));
    for (size_t layer = 0; layer < kLayers; ++layer)
      lbl_L[layer] += alone.values.lbl_L[layer] * static_cast<double>(length) / 11;
  }
  for (size_t layer = 0; layer < kLayers; ++layer) EXPECT_NEAR(a.values.lbl_L[layer], lbl_L[layer], kTolerance);
}

TEST(Invariants, B12DroppedSlotsStillCountAsRequested) {
  ExplicitForward forward = explicit_forward(repeated_tokens(4), 4);
  forward.routing.kept_A = at::empty({4}, at::kBool).fill_(false);
  StepBalance balance(config_of(ScopeKind::OptimizerBatch), {.num_layers = 1, .num_experts = 4, .num_chosen = 1},
                      explicit_plan({{4}}), {});
  record_explicit(balance, 0, 0, forward);
  balance.close_forward(0);
  balance.close_counting();
  EXPECT_THAT(doubles_of(balance.step_counts_LE()), testing::ElementsAre(2, 1, 1, 0));
}

TEST(Invariants, B13PerfectBalanceGivesOneForEveryKAndAllChoicesCount) {
  for (int64_t k = 1; k <= 4; ++k) {
    std::vector<Token> tokens;
    for (int64_t t = 0; t < 4; ++t) {
      Token token{0, {}, {.7, .1, .1, .1}};
      for (int64_t j = 0; j < k; ++j) token.experts.push_back((t + j) % 4);
      tokens.push_back(token);
    }
    const StepBalance step = explicit_step(config_of(ScopeKind::OptimizerBatch), {tokens}, explicit_plan({{4}}), 4);
    EXPECT_NEAR(step.values().lbl_L[0], 1.0, kTolerance);
    EXPECT_EQ(step.step_counts_LE().sum().item<int64_t>(), 4 * k);
  }
}

TEST(Invariants, B14LayersAreNotPooled) {
  StepBalance balance(config_of(ScopeKind::OptimizerBatch, 1.0), {.num_layers = 2, .num_experts = 2, .num_chosen = 1},
                      explicit_plan({{1}}), {});
  record_explicit(balance, 0, 0, explicit_forward({{0, {0}, {.99, .01}}}, 2));
  record_explicit(balance, 0, 1, explicit_forward({{0, {1}, {.01, .99}}}, 2));
  balance.close_forward(0);
  balance.close_counting();
  EXPECT_NEAR(balance.values().weighted_loss, 1.98, kTolerance);  // pooled counts and probabilities would give 1
}

TEST(Invariants, B16TheLossIsNotBoundedBelowByOneAndDoesNotCertifyBalance) {
  std::vector<Token> below_one;  // f = (.6, .4), P = (.31, .69)
  for (int64_t t = 0; t < 10; ++t) below_one.push_back(t < 6 ? Token{0, {0}, {.51, .49}} : Token{0, {1}, {.01, .99}});
  EXPECT_NEAR(explicit_step(config_of(ScopeKind::OptimizerBatch), {below_one}, explicit_plan({{10}}), 2).values().lbl_L[0],
              0.924, kTolerance);
  const std::vector<Token> collapsed(8, Token{0, {0}, {.25, .25, .25, .25}});  // all slots to one expert, P uniform
  EXPECT_NEAR(explicit_step(config_of(ScopeKind::OptimizerBatch), {collapsed}, explicit_plan({{8}}), 4).values().lbl_L[0], 1.0,
              kTolerance);
}

TEST(Invariants, B20DenominatorsAreThoseOfTheStepAtHand) {
  for (const int64_t tokens : {4, 12}) {
    const StepBalance step =
        explicit_step(config_of(ScopeKind::OptimizerBatch, 1.0), {repeated_tokens(tokens)}, explicit_plan({{tokens}}), 4);
    EXPECT_NEAR(step.coefficients_SE(0, 0).sum().item<double>(), 4.0 / static_cast<double>(tokens), kTolerance);
  }
}

TEST(Invariants, ALossThatDoesNotActNeedsNoOtherForward) {
  const StepPlan plan = explicit_plan({{4}, {4}});
  const BalanceShape shape{.num_layers = 1, .num_experts = 4, .num_chosen = 1};
  BalanceConfig config = config_of(ScopeKind::OptimizerBatch);
  EXPECT_TRUE(StepBalance(config, shape, plan, {}).needs_whole_step());
  config.coefficient = 0.0;
  config.terms = {{.method = "lbl", .scope = {.kind = ScopeKind::MicroBatch}, .coefficient = 0.5}};
  StepBalance balance(config, shape, plan, {});
  EXPECT_FALSE(balance.needs_whole_step());
  record_explicit(balance, 0, 0, explicit_forward(repeated_tokens(4), 4));
  balance.close_forward(0);
  EXPECT_GT(balance.coefficients_SE(0, 0).abs().max().item<double>(), 0.0);  // of the narrow loss, before the second forward
  record_explicit(balance, 1, 0, explicit_forward(repeated_tokens(4), 4));
  balance.close_forward(1);
  balance.close_counting();
  EXPECT_NEAR(balance.values().lbl_L[0], 4 * (.5 * .4 + .25 * .3 + .25 * .2), kTolerance);  // the wide value all the same
  config.scope.kind = ScopeKind::PreviousStep;
  EXPECT_FALSE(StepBalance(config, shape, plan, {}).lacks_history());
}

// A log whose `lbl` took another entry's value where the first ends would show a jump that is none.
TEST(Invariants, TheLblOfAStepIsThatOfTheFirstEntryOrNone) {
  BalanceConfig config = config_of(ScopeKind::OptimizerBatch);
  config.to_step = 3;
  config.terms = {{.method = "variance", .scope = {.kind = ScopeKind::OptimizerBatch}, .coefficient = 0.1},
                  {.method = "lbl", .scope = {.kind = ScopeKind::Sequence}, .coefficient = 0.5}};
  const std::vector<std::vector<Token>> tokens = {repeated_tokens(4), repeated_tokens(4)};
  StepPlan plan = explicit_plan({{4}, {4}});
  const auto values_at = [&](int64_t step) {
    plan.step = step;
    return explicit_step(config, tokens, plan, 4).values();
  };
  const BalanceValues before = values_at(2);
  EXPECT_EQ(before.lbl_L, before.terms[0].value_L);
  const BalanceValues after = values_at(3);
  EXPECT_TRUE(after.lbl_L.empty());
  EXPECT_EQ(after.terms[1].value_L.size(), 1U);

  config.to_step = 0;
  config.scope.kind = ScopeKind::PreviousStep;
  EXPECT_TRUE(values_at(0).lbl_L.empty());  // no history yet
  config.method = "none";
  EXPECT_EQ(values_at(0).lbl_L, values_at(0).terms[1].value_L);  // now the later one is the first
}

TEST(Invariants, B22StateChangesOncePerStepAndOnlyByFinish) {
  const BalanceConfig config = config_of(ScopeKind::Ema);
  const std::vector<std::vector<Token>> tokens = {repeated_tokens(4), repeated_tokens(4)};
  BalanceState state;
  StepBalance first = explicit_step(config, tokens, explicit_plan({{4}, {4}}), 4, state);
  EXPECT_TRUE(first.lacks_history());
  EXPECT_TRUE(first.values().lbl_L.empty());
  EXPECT_EQ(first.coefficients_SE(0, 0).abs().max().item<double>(), 0.0);
  EXPECT_FALSE(state.ema_fractions_LE.defined());
  first.finish(state);
  EXPECT_THAT(doubles_of(state.ema_fractions_LE), testing::ElementsAre(.5, .25, .25, 0));
  const BalanceState saved{.previous_counts_LE = state.previous_counts_LE.clone(),
                           .ema_fractions_LE = state.ema_fractions_LE.clone()};
  StepBalance second = explicit_step(config, tokens, explicit_plan({{4}, {4}}), 4, state);
  EXPECT_FALSE(second.lacks_history());
  EXPECT_TRUE(
      state.ema_fractions_LE.equal(saved.ema_fractions_LE));  // a step in progress, or one that is given up, changes nothing
  second.finish(state);
  BalanceState restored = saved;
  explicit_step(config, tokens, explicit_plan({{4}, {4}}), 4, saved).finish(restored);
  EXPECT_TRUE(restored.ema_fractions_LE.equal(state.ema_fractions_LE));
  EXPECT_TRUE(restored.previous_counts_LE.equal(state.previous_counts_LE));
}

TEST(Invariants, B26MaxVioOfTheStepComesFromAddedCounts) {
  const std::vector<Token> left(10, Token{0, {0}, {.5, .5}});
  const std::vector<Token> right(10, Token{0, {1}, {.5, .5}});
  const StepBalance step = explicit_step(config_of(ScopeKind::OptimizerBatch), {left, right}, explicit_plan({{10}, {10}}), 2);
  EXPECT_THAT(doubles_of(step.micro_batch_counts_MLE()), testing::ElementsAre(10, 0, 0, 10));
  EXPECT_THAT(doubles_of(step.step_counts_LE()), testing::ElementsAre(10, 10));
}

TEST(Invariants, B27OrderOfMicroBatchesMattersOnlyToThePrefix) {
  const Layout forward = make_layout({{6, 2}, {3}, {5}});
  const Layout permuted = make_layout({{5}, {6, 2}, {3}});
  const ToyModel model = make_model(19, forward.num_tokens());
  const ToyModel permuted_model = pick_tokens(model, {{11, 5}, {0, 11}});
  const auto differ = [&](ScopeKind kind) {
    const auto a = run_step(model, forward, config_of(kind), plan_of(forward, Partition::Separate), some_history(2));
    const auto b = run_step(permuted_model, permuted, config_of(kind), plan_of(permuted, Partition::Separate), some_history(2));
    return max_abs_difference(a.gradients.hidden_TD, slice_rows(b.gradients.hidden_TD, {{5, 11}, {0, 5}}));
  };
  using enum ScopeKind;
  for (const ScopeKind kind : {Sequence, MicroBatch, OptimizerBatch, PreviousStep, Ema}) EXPECT_LT(differ(kind), kTolerance);
  EXPECT_GT(differ(Prefix), 1e-4);
}

TEST(Invariants, B27TheLastMicroBatchOfThePrefixSeesTheExactFractions) {
  const Layout layout = uneven_layout();
  const ToyModel model = make_model(20, layout.num_tokens());
  const StepPlan plan = plan_of(layout, Partition::Separate);
  const auto prefix = run_step(model, layout, config_of(ScopeKind::Prefix), plan);
  const auto exact = run_step(model, layout, config_of(ScopeKind::OptimizerBatch), plan);
  EXPECT_LT(max_abs_difference(prefix.coefficients.back(), exact.coefficients.back()), kTolerance);
  EXPECT_GT(max_abs_difference(prefix.coefficients.front(), exact.coefficients.front()), 1e-4);
}

}  // namespace
}  // namespace switchyard::toy
