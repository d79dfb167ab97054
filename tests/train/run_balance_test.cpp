// What balancing does in whole runs: offsets over resumption and evaluation, losses of weights, what a run must not hide.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "tests/train/run_fixture.hpp"

namespace switchyard {
namespace {

TEST_F(RunTest, ResumesToTheSameBitsWithOffsets) {
  for (const SelectionRule rule : {SelectionRule::Bias, SelectionRule::Quantile}) {
    RunConfig run = config();
    run.balance.selection.rule = rule;
    run.balance.selection.rate = rule == SelectionRule::Bias ? 0.05 : SelectionConfig{}.rate;
    run.checkpoint.every = 0;
    start(run, to_string(rule) + "-whole");
    start_and_stop(run, to_string(rule) + "-parts", 3);
    resume(run, to_string(rule) + "-parts");
    expect_same_run(to_string(rule) + "-whole", to_string(rule) + "-parts");
  }
}

// A step of 1 against each expert above the mean load: no token goes to one of them any more.
TEST_F(RunTest, EvaluationChoosesWithTheOffsetsOfTraining) {
  RunConfig run = config();
  run.balance.selection.rule = SelectionRule::Bias;
  run.steps = 1;
  for (const double rate : {1e-9, 1.0}) {
    run.balance.selection.rate = rate;
    const std::string name = rate < 1.0 ? "small" : "large";
    start(run, name);
    const double dead = log(name).evaluations.back().global.dead_experts;
    if (rate < 1.0) {
      EXPECT_EQ(dead, 0.0);
    } else {
      EXPECT_GE(dead, 1.0);
    }
  }
}

TEST_F(RunTest, TheGradientOfSimBalIsClippedWithTheRest) {
  RunConfig run = config();
  run.steps = 1;
  start(run, "without");
  run.balance.simbal_coefficient = 1000.0;
  start(run, "with");
  EXPECT_GT(log("with").steps[0].gradient_norm, 10.0 * log("without").steps[0].gradient_norm);
}

TEST_F(RunTest, ALossThatDoesNotActLacksNothing) {
  RunConfig run = config();
  parse("previous_step", run.balance.scope);
  run.balance.coefficient = 0.0;
  run.steps = 1;
  start(run, "a");
  EXPECT_THAT(notices("a"), testing::Not(testing::Contains(testing::HasSubstr("lacks a balancing loss"))));
}

// Zero weights have zero hidden states, and those a zero gradient, the head's included.
TEST_F(RunTest, AGradientOfZeroEndsTheRun) {
  RunConfig run = config();
  run.model.init_deviation = 0.0;
  run.balance.coefficient = 0.0;
  try {
    start(run, "a");
    FAIL() << "a model that learns nothing was trained";
  } catch (const StateError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("the gradient of step 1 is 0 for every weight"));
  }
}

}  // namespace
}  // namespace switchyard
