// Every scope, both weightings, every contract and partition against the plain expression over the whole step.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "dense_oracle.hpp"
#include "switchyard/balance/groups.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::toy {
namespace {

constexpr double kTolerance = 1e-12;

void expect_close(const std::vector<double>& given, const std::vector<double>& expected) {
  ASSERT_EQ(given.size(), expected.size());
  for (size_t i = 0; i < given.size(); ++i) EXPECT_NEAR(given[i], expected[i], kTolerance);
}

class OracleTest : public testing::TestWithParam<std::tuple<Scope, GroupWeighting, LayerReduction>> {
 protected:
  [[nodiscard]] static BalanceConfig config() {
    const auto& [scope, weighting, layers] = GetParam();
    return {
        .method = "lbl", .scope = scope, .coefficient = 0.7, .z_coefficient = 0.05, .weighting = weighting, .layers = layers};
  }
  static void expect_equal(const StepResult& result, const OracleResult& oracle) {
    EXPECT_LT(max_difference(result.gradients, oracle.gradients), kTolerance);
    expect_close(result.values.lbl_L, oracle.lbl_L);
    expect_close(result.values.z_loss_L, oracle.z_loss_L);
    EXPECT_NEAR(result.values.weighted_loss, oracle.weighted_loss, kTolerance);
  }

  Layout layout_ = uneven_layout();
  ToyModel model_ = make_model(3, layout_.num_tokens());
  BalanceState history_ = some_history(5);
  OracleResult oracle_ = dense_oracle(model_, layout_, config(), history_);
};

TEST_P(OracleTest, OneForwardForTheStep) {
  for (const Averaging contract : {Averaging::Sum, Averaging::Mean}) {
    expect_equal(run_step(model_, layout_, config(), plan_of(layout_, Partition::Together, contract), history_), oracle_);
  }
}

TEST_P(OracleTest, OneForwardPerMicroBatch) {
  for (const Averaging contract : {Averaging::Sum, Averaging::Mean, Averaging::ByTokens}) {
    expect_equal(run_step(model_, layout_, config(), plan_of(layout_, Partition::Separate, contract), history_), oracle_);
  }
}

TEST_P(OracleTest, TwoMicroBatchesPerForward) {
  expect_equal(run_step(model_, layout_, config(), plan_of(layout_, Partition::Pairs), history_), oracle_);
}

TEST_P(OracleTest, CountingPassFirst) {
  const StepPlan plan = plan_of(layout_, Partition::Separate);
  expect_equal(run_step(model_, layout_, config(), plan, history_, Order::Prepass), oracle_);
}

TEST_P(OracleTest, BackwardAfterEachForwardWhereTheScopeAllows) {
  const StepPlan plan = plan_of(layout_, Partition::Separate);
  if (needs_whole_step(config().scope, plan)) {
    EXPECT_THROW(static_cast<void>(run_step(model_, layout_, config(), plan, history_, Order::Direct)), StateError);
  } else {
    expect_equal(run_step(model_, layout_, config(), plan, history_, Order::Direct), oracle_);
  }
}

// Guards the other tests: a loss too small to see would make them all pass.
TEST_P(OracleTest, TheBalancingLossIsVisible) {
  BalanceConfig none = config();
  none.coefficient = 0.0;
  const OracleResult without = dense_oracle(model_, layout_, none, history_);
  EXPECT_GT(max_abs_difference(without.gradients.hidden_TD, oracle_.gradients.hidden_TD), 1e-4);
  EXPECT_GT(max_abs_difference(without.gradients.logits_LTE[0], oracle_.gradients.logits_LTE[0]), 1e-4);
  EXPECT_GT(max_abs_difference(without.gradients.logits_LTE[1], oracle_.gradients.logits_LTE[1]), 1e-4);
}

std::string case_name(const testing::TestParamInfo<OracleTest::ParamType>& test_case) {
  const auto& [scope, weighting, layers] = test_case.param;
  return test_name(join_text(to_string(scope), "_", to_string(weighting), "_layers_", to_string(layers)));
}

INSTANTIATE_TEST_SUITE_P(Scopes, OracleTest,
                         testing::Combine(testing::ValuesIn(every_scope({1, 2, 3, 50})),
                                          testing::Values(GroupWeighting::Mean, GroupWeighting::Tokens),
                                          testing::Values(LayerReduction::Mean, LayerReduction::Sum)),
                         case_name);

// Finite differences of the value with f held fixed (f from history, so that moving the input cannot move it).
TEST(FiniteDifferences, GradientOfTheValueWithFractionsFixed) {
  const Layout layout = make_layout({{3, 2}, {2, -1}});
  ToyModel model = make_model(9, layout.num_tokens());
  const BalanceState history = some_history(1);
  BalanceConfig config{.scope = {.kind = ScopeKind::PreviousStep}, .coefficient = 0.5, .z_coefficient = 0.1};
  const StepPlan plan = plan_of(layout, Partition::Separate);
  const Gradients with = run_step(model, layout, config, plan, history).gradients;
  config.coefficient = config.z_coefficient = 0.0;
  const Gradients without = run_step(model, layout, config, plan, history).gradients;
  const at::Tensor slope_ED = with.router_LED[0].sub(without.router_LED[0]);
  config.coefficient = 0.5;
  config.z_coefficient = 0.1;

  constexpr double kStep = 1e-5;
  double* weights = model.router_LED[0].mutable_data_ptr<double>();
  for (int64_t i = 0; i < kExperts * kWidth; ++i) {
    const double kept = weights[i];
    weights[i] = kept + kStep;
    const double above = run_step(model, layout, config, plan, history).values.weighted_loss;
    weights[i] = kept - kStep;
    const double below = run_step(model, layout, config, plan, history).values.weighted_loss;
    weights[i] = kept;
    EXPECT_NEAR((above - below) / (2 * kStep), slope_ED.const_data_ptr<double>()[i], 1e-8);
  }
}

}  // namespace
}  // namespace switchyard::toy
