#include "switchyard/report/study.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "switchyard/report/arm_style.hpp"
#include "switchyard/report/tables.hpp"
#include "synthetic_study.hpp"

namespace switchyard {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::synthetic_demo;
using testing::synthetic_run;
using testing::SyntheticShape;

SyntheticShape small_shape() {
  SyntheticShape shape;
  shape.domains = {"a", "b"};
  shape.num_experts = 4;
  shape.num_layers = 1;
  shape.total_steps = 20;
  shape.evaluated_steps = {20};
  return shape;
}

RunInput small_run(const std::string& arm, int64_t seed) { return synthetic_run({.name = arm}, seed, small_shape()); }

std::vector<std::string> labels(const StudyGroup& group) {
  std::vector<std::string> names;
  for (const StudyArm& arm : group.arms) names.push_back(arm.label);
  return names;
}

template <typename ErrorType>
std::string message_of(const std::vector<RunInput>& runs, const ReportOptions& options = {}) {
  try {
    static_cast<void>(make_groups(runs, options));
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "no error of this type";
}

TEST(MakeGroups, PutsFloorsAndCeilingLastAndJoinsSeeds) {
  const auto groups = make_groups(synthetic_demo(small_shape()), {});
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_THAT(labels(groups[0]), ElementsAre("optimizer_batch", "micro_batch", "no_balancing", "frozen_random", "random",
                                             "prescribed_shuffled", "prescribed"));
  EXPECT_EQ(groups[0].arms[0].runs.size(), 2U);
  EXPECT_EQ(groups[0].arms[3].kind, ArmKind::Floor);
  EXPECT_EQ(groups[0].arms[6].kind, ArmKind::Ceiling);
  EXPECT_THAT(groups[0].warnings, IsEmpty());
}

TEST(MakeGroups, FollowsTheOrderKindsAndBaselineOfTheOptions) {
  ReportOptions options;
  options.arms = {{"micro_batch", ArmKind::Trained, "narrow"}, {"no_balancing", ArmKind::Floor, ""}};
  options.baseline = "micro_batch";
  const StudyGroup group = make_groups(synthetic_demo(small_shape()), options)[0];
  EXPECT_THAT(labels(group), ElementsAre("micro_batch", "optimizer_batch", "no_balancing", "frozen_random", "random",
                                         "prescribed_shuffled", "prescribed"));
  EXPECT_EQ(group.arms[2].kind, ArmKind::Floor);
  EXPECT_EQ(group.arms[0].description, "narrow");
  EXPECT_EQ(group.baseline, 0U);
}

TEST(MakeGroups, WarnsOfStepsThatAreMissingOrThereTwice) {
  const auto warnings = [](const std::vector<int64_t>& steps) {
    RunInput run = small_run("x", 0);
    const StepRecord record = run.log.steps.front();
    run.log.steps.clear();
    for (const int64_t step : steps) {
      run.log.steps.push_back(record);
      run.log.steps.back().step = step;
    }
    return make_groups({run}, {})[0].warnings;
  };
  EXPECT_THAT(warnings({1, 2, 6, 7}), ElementsAre(HasSubstr("has step 6 where step 3 is expected")));
  EXPECT_THAT(warnings({6, 7, 8}), ElementsAre(HasSubstr("has step 6 where step 1 is expected")));
  EXPECT_THAT(warnings({1, 2, 2, 3}), ElementsAre(HasSubstr("has step 2 where step 3 is expected")));
  EXPECT_THAT(warnings({1, 2, 3}), IsEmpty());
  EXPECT_THAT(warnings({}), IsEmpty());
  EXPECT_THAT(warnings({10, 20, 30}), IsEmpty()) << "another program that logs each tenth step";
}

TEST(MakeGroups, KeepsApartWhatDoesNotCompare) {
  SyntheticShape other = small_shape();
  other.num_experts = 8;
  EXPECT_EQ(make_groups({small_run("x", 0), synthetic_run({.name = "y"}, 0, other)}, {}).size(), 2U);
  RunInput run = small_run("y", 0);
  run.log.start.data_hash = "other data";
  EXPECT_EQ(make_groups({small_run("x", 0), run}, {}).size(), 2U);
}

TEST(MakeGroups, SplitsAnArmWhoseSettingsDiffer) {
  RunInput run = small_run("x", 1);
  run.log.start.coefficient = 0.2;
  const StudyGroup group = make_groups({small_run("x", 0), run}, {})[0];
  EXPECT_THAT(labels(group), ElementsAre("x (top_k, optimizer_batch, lbl 0.1)", "x (top_k, optimizer_batch, lbl 0.2)"));
}

// What the start record does not hold is in the configuration.
TEST(MakeGroups, SplitsAnArmWhoseConfigurationsDiffer) {
  RunInput first = small_run("x", 0), second = small_run("x", 1), third = small_run("x", 2);
  first.config_toml += "\n[optimizer]\nlearning_rate = 0.001\n[execution]\nthreads = 1\n";
  second.config_toml += "\n[optimizer]\nlearning_rate = 0.004\n[execution]\nthreads = 2\n";
  third.config_toml += "\n[optimizer]\nlearning_rate = 0.004\n[execution]\nthreads = 2\n";
  const StudyGroup group = make_groups({first, second, third}, {})[0];
  EXPECT_THAT(labels(group), ElementsAre("x (optimizer.learning_rate = 0.001)", "x (optimizer.learning_rate = 0.004)"));
  EXPECT_THAT(group.arms[1].runs, ElementsAre(1, 2));
  EXPECT_TRUE(group.same_beginning);
  for (RunInput* run : {&first, &second, &third}) run->config_toml += "[balance]\nmethod = \"lbl\"\n";
  third.config_toml += "[[balance.terms]]\nmethod = \"lbl\"\nscope = \"micro_batch\"\ncoefficient = 0.01\n";
  const StudyGroup terms = make_groups({first, second, third}, {})[0];
  ASSERT_EQ(terms.arms.size(), 3U);
  EXPECT_THAT(terms.arms[2].label, HasSubstr("lbl 0.1 over optimizer_batch; lbl 0.01 over micro_batch"));
  third.config_toml = "# config.toml is missing in the run folder\n";  // says nothing
  EXPECT_EQ(make_groups({second, third}, {})[0].arms.size(), 1U);
  second.config_toml += "[[balance.terms]]\nmethod = \"lbl\"\n";
  EXPECT_EQ(make_groups({second, third}, {})[0].arms.size(), 1U);
}

TEST(MakeGroups, SaysWhereOneSeedIsNotOneBeginning) {
  RunInput x = small_run("x", 0), y = small_run("y", 0);
  x.config_toml += "\n[data]\npath = \"a\"\nmicro_batches = 8\n";
  y.config_toml += "\n[data]\npath = \"b\"\nmicro_batches = 16\n";
  const StudyGroup group = make_groups({x, y}, {})[0];
  EXPECT_FALSE(group.same_beginning);
  EXPECT_THAT(group.warnings, ElementsAre(HasSubstr("The runs differ in data.micro_batches: 16, 8.")));
}

bool claims_one_beginning(const StudyGroup& group) {
  return paired_table(group, arm_styles(group.arms)).find("same data order") != std::string::npos;
}

// A run of another program beside ours: neither data order nor initial weights are those of our seed.
TEST(MakeGroups, DoubtsOneBeginningOfTwoPrograms) {
  RunInput ours = small_run("x", 0), theirs = small_run("y", 0);
  EXPECT_TRUE(claims_one_beginning(make_groups({ours, theirs}, {})[0]));
  theirs.log.start.version = "transformers 5.2.0";
  EXPECT_THAT(make_groups({ours, theirs}, {})[0].warnings,
              ElementsAre(HasSubstr("differ in version: 0.1.0, transformers 5.2.0, so")));
  EXPECT_FALSE(claims_one_beginning(make_groups({ours, theirs}, {})[0]));
  theirs.log.start.commit = "";
  theirs.config_toml = "length = 256\nwidth = 128\n";
  const StudyGroup group = make_groups({ours, theirs}, {})[0];
  EXPECT_FALSE(claims_one_beginning(group));
  EXPECT_THAT(group.warnings, ElementsAre(HasSubstr("version"), HasSubstr("data.sequence_length, model.width, so one seed")));
  ours.config_toml += "num_heads = 4\nnum_layers = 1\nvocab_size = 400\nrope_theta = 1e+06\n";
  const std::string shown = "data.sequence_length, model.num_heads, model.num_layers, model.rope_theta and 2 other keys";
  EXPECT_THAT(make_groups({ours, theirs}, {})[0].warnings, Contains(HasSubstr(shown)));
}

// Two runs of another program that differ in length; and two whose configurations do not say.
TEST(MakeGroups, DoubtsOneBeginningThatNobodyTells) {
  RunInput first = small_run("x", 0), second = small_run("y", 0);
  first.config_toml = "[data]\nsequence_length = 256\nmicro_batches = 8\n[model]\nwidth = 128\n";
  second.config_toml = "[data]\nsequence_length = 64\nmicro_batches = 4\n[model]\nwidth = 128\n";
  const StudyGroup told = make_groups({first, second}, {})[0];
  EXPECT_FALSE(claims_one_beginning(told));
  EXPECT_THAT(told.warnings, ElementsAre(HasSubstr("data.micro_batches: 4, 8."), HasSubstr("data.sequence_length: 256, 64.")));
  first.config_toml = "data = \"mix8\"\nlength = 256\n[model]\nwidth = 128\n";
  second.config_toml = "data = \"mix8\"\nlength = 64\n[model]\nwidth = 128\n";
  const StudyGroup untold = make_groups({first, second}, {})[0];
  EXPECT_FALSE(claims_one_beginning(untold));
  EXPECT_THAT(untold.warnings, ElementsAre(HasSubstr("No configuration has keys of data, so one seed may not")));
  EXPECT_THAT(make_groups({first}, {})[0].warnings, IsEmpty());  // nothing to compare
}

TEST(Settings, PutsAllBalancingInWords) {
  StartRecord start;
  start.scope = "none";
  EXPECT_EQ(balancing_text(start, {}), "no balancing");
  const Settings all = read_settings(
      "[balance]\nto_step = 100\nz_coefficient = 0.001 \nsimbal_coefficient = 0.0\n# a = comment\n"
      "[[balance.terms]]\nmethod = \"lbl\"\nscope = \"prefix\"\ncoefficient = 0.5\nfrom_step = 100\n"
      "[[balance.terms]]\nmethod = \"variance\"\nscope = \"ranks\"\ncoefficient = 2\n[balance.selection]\nrule = \"bias\"\n");
  EXPECT_EQ(balancing_text(start, all),
            "lbl 0.5 over prefix after step 100; variance 2 over ranks; z-loss 0.001; choice by bias");
  start.scope = "micro_batch";
  start.method = "lbl";
  start.coefficient = 0.1;
  EXPECT_THAT(balancing_text(start, all), ::testing::StartsWith("lbl 0.1 over micro_batch up to step 100; lbl 0.5"));
}

TEST(MakeGroups, SplitsAnArmWithOneSeedTwice) {
  RunInput again = small_run("x", 0);
  again.name = "second";
  EXPECT_THAT(labels(make_groups({small_run("x", 0), again}, {})[0]), ElementsAre("x [x-seed0]", "x [second]"));
}

TEST(MakeGroups, LeavesUnfinishedRunsOutOfTheSummary) {
  RunInput open = small_run("x", 1);
  open.log.end.reset();
  const StudyGroup group = make_groups({small_run("x", 0), open}, {})[0];
  EXPECT_THAT(group.arms[0].counted, ElementsAre(0));
  EXPECT_FALSE(group.arms[0].is_partial);
  ASSERT_EQ(group.warnings.size(), 1U);
  EXPECT_THAT(group.warnings[0], HasSubstr("x-seed1 is not finished (no end in the log after step 20 of 20)"));
}

TEST(MakeGroups, MarksAnArmThatHasOnlyUnfinishedRuns) {
  RunInput open = small_run("x", 1);
  open.log.end = EndRecord{10, "interrupted", 1.0, 1.0};
  const StudyGroup group = make_groups({open}, {})[0];
  EXPECT_THAT(group.arms[0].counted, ElementsAre(0));
  EXPECT_TRUE(group.arms[0].is_partial);
}

TEST(MakeGroups, TakesARunWithoutEvaluation) {
  RunInput run = small_run("x", 0);
  run.log.evaluations.clear();
  const StudyGroup group = make_groups({run}, {})[0];
  EXPECT_THAT(group.arms[0].counted, IsEmpty());
  EXPECT_FALSE(group.arms[0].is_partial);
}

TEST(MakeGroups, WarnsOfDifferentHeldOutText) {
  RunInput run = small_run("y", 0);
  run.log.evaluations.back().sequences = 64;
  const StudyGroup group = make_groups({small_run("x", 0), run}, {})[0];
  EXPECT_THAT(group.warnings, ElementsAre("The runs differ in held-out sequences: 64, 512."));
  EXPECT_EQ(evaluated_numbers(group, &EvaluationRecord::sequences), "64 or 512");
  run.log.evaluations.clear();
  EXPECT_THAT(make_groups({small_run("x", 0), run}, {})[0].warnings, IsEmpty());
}

TEST(MakeGroups, WarnsOfArmsThatDifferInTheOptimizer) {
  RunInput x = small_run("x", 0), y = small_run("y", 0);
  x.config_toml += "\n[optimizer]\nlearning_rate = 0.001\n";
  y.config_toml += "\n[optimizer]\nlearning_rate = 0.002\n";
  const StudyGroup group = make_groups({x, y}, {})[0];
  EXPECT_TRUE(group.same_beginning);
  EXPECT_THAT(group.warnings, ElementsAre("The runs differ in optimizer.learning_rate: 0.001, 0.002."));
}

TEST(MakeGroups, TellsGroupsOfOneShapeApart) {
  RunInput x = small_run("x", 0), y = small_run("y", 0), z = small_run("z", 0);
  x.log.start.data_hash = "0123456789abcdef";
  y.log.start.data_hash = "fedcba9876543210";
  z.log.start.domains = {"a", "c"};
  const std::string shape = "2 domains, 4 experts of which 2 are chosen, 1 MoE layer";
  const auto labels_of = [](const std::vector<StudyGroup>& groups) {
    std::vector<std::string> texts;
    for (const StudyGroup& group : groups) texts.push_back(group.label);
    return texts;
  };
  EXPECT_THAT(labels_of(make_groups({x}, {})), ElementsAre(shape));
  EXPECT_THAT(labels_of(make_groups({x, y}, {})), ElementsAre(shape + ", data 0123456789ab", shape + ", data fedcba987654"));
  EXPECT_THAT(labels_of(make_groups({x, z}, {})), ElementsAre(shape + ": a, b", shape + ": a, c"));
}

TEST(MakeGroups, RefusesWhatItCannotReport) {
  EXPECT_THAT(message_of<UsageError>({}), HasSubstr("at least one run"));
  EXPECT_THAT(message_of<UsageError>({small_run("x", 0), small_run("x", 0)}), HasSubstr("two runs are named 'x-seed0'"));
  ReportOptions options;
  options.baseline = "xs";
  EXPECT_THAT(message_of<UsageError>({small_run("x", 0)}, options), HasSubstr("unknown baseline arm 'xs'"));
}

TEST(MakeGroups, RefusesATableThatIsNotDomainsByExperts) {
  RunInput run = small_run("x", 0);
  run.log.evaluations[0].layers[0].counts_NE[1].pop_back();
  EXPECT_THAT(message_of<DataError>({run}), HasSubstr("counts_NE of layer 0 is not 2 domains x 4 experts"));
  run = small_run("x", 0);
  run.log.evaluations[0].layers[0].jensen_shannon_NN.pop_back();
  EXPECT_THAT(message_of<DataError>({run}), HasSubstr("jensen_shannon_NN"));
  run = small_run("x", 0);
  run.log.evaluations[0].layers.clear();
  EXPECT_THAT(message_of<DataError>({run}), HasSubstr("0 layers were measured"));
  run = small_run("x", 0);
  run.log.evaluations[0].domains.pop_back();
  EXPECT_THAT(message_of<DataError>({run}), HasSubstr("1 domains have a loss"));
}

}  // namespace
}  // namespace switchyard
