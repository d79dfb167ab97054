#include "switchyard/report/arm_summary.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <limits>

#include "switchyard/core/error.hpp"
#include "switchyard/report/arm_style.hpp"
#include "switchyard/report/chart_data.hpp"
#include "switchyard/report/tables.hpp"
#include "synthetic_study.hpp"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kTight = 1e-12;

/// A finished run that measured nothing but what the test sets.
RunInput plain_run(const std::string& arm, int64_t seed, double specialization, double loss) {
  RunInput run;
  run.name = arm + std::to_string(seed);
  run.log.start.arm = arm;
  run.log.start.seed = seed;
  run.log.start.domains = {"a", "b"};
  run.log.start.num_layers = 2;
  run.log.start.num_experts = 2;
  run.log.start.num_chosen = 1;
  EvaluationRecord& evaluation = run.log.evaluations.emplace_back();
  evaluation.specialization = specialization;
  evaluation.loss = loss;
  evaluation.domains = {{"a", loss - 1.0, 0.0, 1}, {"b", loss + 1.0, 0.0, 1}};
  evaluation.layers.resize(2);
  for (LayerEvaluation& layer : evaluation.layers) layer.counts_NE = {{1, 0}, {0, 1}};
  evaluation.layers[0].purity_null = 0.2;
  evaluation.layers[1].purity_null = 0.4;
  run.log.end = EndRecord{0, "done", 0.0, 0.0};
  return run;
}

Summary summary_of(const StudyGroup& group, std::size_t arm, std::string_view metric) {
  return summarize_arm(group, group.arms[arm], find_metric(metric));
}

TEST(SummarizeArm, IsTheMeanOverSeedsWithItsInterval) {
  const StudyGroup group = make_groups({plain_run("x", 0, 0.2, 5.0), plain_run("x", 1, 0.4, 5.2)}, {})[0];
  const Summary summary = summary_of(group, 0, "specialization");
  EXPECT_EQ(summary.count, 2);
  EXPECT_NEAR(summary.mean, 0.3, kTight);
  // t(.975, 1) = 12.7062; s = .141421; 12.7062 * .141421 / sqrt 2 = 1.27062
  ASSERT_TRUE(summary.interval.has_value());
  EXPECT_NEAR(summary.interval->lower, 0.3 - 1.27062, 1e-5);
  EXPECT_NEAR(summary.interval->upper, 0.3 + 1.27062, 1e-5);
  EXPECT_NEAR(summary_of(group, 0, "purity_null").mean, 0.3, kTight);
  EXPECT_NEAR(summarize_domain_loss(group, group.arms[0], 1).mean, 6.1, kTight);
}

TEST(SummarizeArm, HasNoIntervalFromOneSeedAndNoValueFromNone) {
  RunInput empty = plain_run("y", 0, 0.0, 0.0);
  empty.log.evaluations.clear();
  const StudyGroup group = make_groups({plain_run("x", 0, 0.2, 5.0), empty}, {})[0];
  EXPECT_FALSE(summary_of(group, 0, "loss").interval.has_value());
  EXPECT_EQ(summary_of(group, 1, "loss").count, 0);
}

TEST(SummarizeArm, SpecializationNeedsTwoDomains) {
  RunInput run = plain_run("x", 0, 0.2, 5.0);
  run.log.start.domains = {"a"};
  run.log.evaluations[0].domains.pop_back();
  for (LayerEvaluation& layer : run.log.evaluations[0].layers) layer.counts_NE = {{1, 1}};
  const StudyGroup group = make_groups({run}, {})[0];
  EXPECT_EQ(summary_of(group, 0, "specialization").count, 0);
  EXPECT_EQ(summary_of(group, 0, "loss").count, 1);
}

TEST(SummarizeArm, TrainingLblIsTheLastTenthOfTheSteps) {
  RunInput run = plain_run("x", 0, 0.2, 5.0);
  for (int64_t step = 1; step <= 20; ++step) {
    StepRecord& record = run.log.steps.emplace_back();
    record.step = step;
    record.lbl = step == 19 ? 1.25 : step == 20 ? 1.75 : 100.0;
  }
  const StudyGroup group = make_groups({run}, {})[0];
  EXPECT_NEAR(summary_of(group, 0, "lbl").mean, 1.5, kTight);
}

TEST(SummarizeArm, SpeedIsTheMedianOfAnEvenNumberToo) {
  RunInput run = plain_run("x", 0, 0.2, 5.0);
  for (const double speed : {400.0, 100.0, 300.0, 200.0}) run.log.steps.emplace_back().tokens_per_second = speed;
  EXPECT_EQ(summary_of(make_groups({run}, {})[0], 0, "speed").mean, 250.0);
  run.log.steps.pop_back();
  EXPECT_EQ(summary_of(make_groups({run}, {})[0], 0, "speed").mean, 300.0);
}

TEST(SummarizeArm, TrainingLblSkipsStepsWithoutOne) {
  RunInput run = plain_run("x", 0, 0.2, 5.0);
  for (int64_t step = 1; step <= 20; ++step) run.log.steps.emplace_back().step = step;
  run.log.steps.back().lbl = 1.75;
  const StudyGroup group = make_groups({run}, {})[0];
  EXPECT_NEAR(summary_of(group, 0, "lbl").mean, 1.75, kTight);
}

TEST(PairedDifference, UsesOnlySharedSeeds) {
  const StudyGroup group = make_groups({plain_run("x", 0, 0.5, 5.0), plain_run("x", 1, 0.7, 5.0), plain_run("x", 2, 9.0, 5.0),
                                        plain_run("y", 1, 0.3, 5.1), plain_run("y", 0, 0.4, 4.9), plain_run("y", 7, 0.0, 5.0)},
                                       {})[0];
  const PairedDifference s = paired_difference(group, group.arms[0], group.arms[1], find_metric("specialization"));
  EXPECT_THAT(s.seeds, ElementsAre(0, 1));
  EXPECT_NEAR(s.summary.mean, 0.25, kTight);  // (.5 - .4 + .7 - .3) / 2
  EXPECT_EQ(s.num_positive, 2);
  const PairedDifference loss = paired_difference(group, group.arms[0], group.arms[1], find_metric("loss"));
  EXPECT_EQ(loss.num_positive, 1);
  EXPECT_EQ(loss.num_negative, 1);
}

TEST(PairedDifference, IgnoresUnfinishedArms) {
  RunInput open = plain_run("x", 0, 0.5, 5.0);
  open.log.end.reset();
  const StudyGroup group = make_groups({open, plain_run("y", 0, 0.4, 4.9)}, {})[0];
  EXPECT_TRUE(paired_difference(group, group.arms[0], group.arms[1], find_metric("loss")).seeds.empty());
}

TEST(PairedDifference, RefusesAnUnfinishedBaseline) {
  RunInput open = plain_run("y", 0, 0.4, 4.9);
  open.log.end.reset();
  const StudyGroup group = make_groups({plain_run("x", 0, 0.5, 5.0), open}, {})[0];
  EXPECT_TRUE(paired_difference(group, group.arms[0], group.arms[1], find_metric("loss")).seeds.empty());
}

TEST(PairedDifference, CountsATieForNeitherArm) {
  const StudyGroup group = make_groups({plain_run("x", 0, 0.5, 5.0), plain_run("y", 0, 0.4, 5.0)}, {})[0];
  const PairedDifference loss = paired_difference(group, group.arms[0], group.arms[1], find_metric("loss"));
  EXPECT_THAT(loss.seeds, ElementsAre(0));
  EXPECT_EQ(loss.num_positive, 0);
  EXPECT_EQ(loss.num_negative, 0);
}

TEST(PairedTable, CountsHigherLowerAndEqualSeeds) {
  const auto losses = [](std::initializer_list<double> of_arm) {  // against 5 on each seed
    std::vector<RunInput> runs;
    int64_t seed = 0;
    for (const double loss : of_arm) {
      runs.push_back(plain_run("base", seed, 0.5, 5.0));
      runs.push_back(plain_run("x", seed++, 0.5, loss));
    }
    const StudyGroup group = make_groups(runs, {})[0];
    return paired_table(group, arm_styles(group.arms));
  };
  EXPECT_THAT(losses({4.0, 5.0}), HasSubstr("lower on 1, equal on 1"));
  EXPECT_THAT(losses({4.0, 6.0, 7.0}), HasSubstr("higher on 2, lower on 1"));
  EXPECT_THAT(losses({5.0, 5.0}), HasSubstr("equal on all 2"));
  EXPECT_THAT(losses({6.0, 7.0}), HasSubstr("higher on all 2"));
  EXPECT_THAT(losses({5.0 + 1e-9}), Not(HasSubstr("+0.000")));
}

TEST(FindMetric, RefusesUnknownNames) { EXPECT_THROW(static_cast<void>(find_metric("specialisation")), StateError); }

std::vector<StepRecord> steps_with_loss(const std::vector<double>& losses) {
  std::vector<StepRecord> steps;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    StepRecord& step = steps.emplace_back();
    step.step = static_cast<int64_t>(i) + 1;
    step.loss = losses[i];
  }
  return steps;
}

TEST(ThinCurve, KeepsShortCurvesAsTheyAre) {
  const ThinCurve curve = thin_curve(steps_with_loss({3.0, 2.0}), 2);
  EXPECT_EQ(curve.window, 1U);
  EXPECT_THAT(curve.loss, ElementsAre(3.0, 2.0));
}

TEST(ThinCurve, AveragesWindowsAndPutsThemAtTheirLastStep) {
  std::vector<StepRecord> steps = steps_with_loss({5.0, 3.0, 2.0, 1.0, 7.0});
  steps[2].lbl = 1.5;
  const ThinCurve curve = thin_curve(steps, 3);
  EXPECT_EQ(curve.window, 2U);
  EXPECT_THAT(curve.step, ElementsAre(2.0, 4.0, 5.0));
  EXPECT_THAT(curve.loss, ElementsAre(4.0, 1.5, 7.0));
  EXPECT_TRUE(std::isnan(curve.lbl[0]));
  EXPECT_EQ(curve.lbl[1], 1.5);  // of the window's steps only one has it
}

TEST(ThinCurve, TakesNoStepsAndRefusesNoPoints) {
  EXPECT_TRUE(thin_curve({}, 10).loss.empty());
  EXPECT_THROW(static_cast<void>(thin_curve({}, 0)), UsageError);
}

}  // namespace
}  // namespace switchyard
