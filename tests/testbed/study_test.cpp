#include "switchyard/testbed/study.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "switchyard/measure/run_log.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

using ::testing::Contains;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Not;

TestbedConfig make_config() {
  TestbedConfig config;
  config.name = "study";
  config.seeds = {0, 1};
  config.run.balance.coefficient = 0.1;
  config.run.data.batcher.composition = Composition::OneDomain;
  config.arms = {{"wide", ArmKind::Trained, "", {}, {}}, {"null", ArmKind::Floor, "does not learn", {"balance.coefficient=0.0"}, {0}}};
  ClaimConfig claim;
  claim.arm = "wide";
  claim.against = "null";
  claim.at_least = 0.125;
  config.claims = {claim};
  return config;
}

std::vector<RunResultRow> make_results(const std::vector<PlannedRun>& runs) {
  std::vector<RunResultRow> results;
  for (const PlannedRun& run : runs) {
    EvaluationRecord evaluation;
    evaluation.sequences = 512;
    evaluation.specialization = run.arm == "null" ? 0.125 : 0.5 + 0.25 * static_cast<double>(run.seed);
    evaluation.global.max_vio = 0.25;
    evaluation.micro_batch.max_vio = 2.0;
    evaluation.loss = 4.5;
    results.push_back({run.name, run.arm, run.seed, evaluation});
  }
  return results;
}

TEST(ReadResults, TakesTheLastEvaluationOfAFinishedRun) {
  const test::ScratchFolder folder;
  PlannedRun run;
  run.name = "wide-seed0";
  std::filesystem::create_directory(folder.path() / run.name);
  RunLogWriter log(folder.path() / run.name / "log.jsonl", 0);
  log.add(StartRecord{});
  for (const int64_t step : {10, 20}) {
    EvaluationRecord evaluation;
    evaluation.step = step;
    log.add(evaluation);
  }
  log.add(EndRecord{20, "done", 0.0, 0.0});
  const std::vector<RunResultRow> results = read_results(folder.path(), {run});
  ASSERT_EQ(results.size(), 1U);
  ASSERT_TRUE(results[0].evaluation.has_value());
  EXPECT_EQ(results[0].evaluation->step, 20);
}

TEST(MakeStudy, SummarisesEachArmOverItsSeeds) {
  const TestbedConfig config = make_config();
  const std::vector<PlannedRun> runs = expand(config);
  const Study study = make_study(config, runs, make_results(runs));
  ASSERT_EQ(study.arms.size(), 2U);
  EXPECT_EQ(study.arms[0].specialization.mean, 0.625);
  // t(.975, 1 degree) = 12.7062; deviation of {.5, .75} is .17678; half width 12.7062 * .17678 / sqrt 2 = 1.5883.
  ASSERT_TRUE(study.arms[0].specialization.interval.has_value());
  EXPECT_NEAR(study.arms[0].specialization.interval->upper - 0.625, 1.5883, 1e-4);
  EXPECT_EQ(study.arms[0].max_vio.mean, 0.25);
  EXPECT_EQ(study.arms[0].max_vio_micro_batch.mean, 2.0);
  EXPECT_EQ(study.arms[0].loss.mean, 4.5);
  EXPECT_EQ(study.arms[1].kind, ArmKind::Floor);
  EXPECT_FALSE(study.arms[1].specialization.interval.has_value());
  EXPECT_EQ(study.claims.at(0).verdict, Verdict::Holds);
}

TEST(StudyNotes, SayOnlyWhatTheConfigurationMakesTrue) {
  TestbedConfig config = make_config();
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("lambda of a layer 0.025)")));
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("worst case")));
  config.run.balance.coefficient = 0.032;  // .008 for each of 4 layers
  config.run.data.batcher.composition = Composition::Mixed;
  EXPECT_THAT(study_notes(expand(config)), Each(Not(HasSubstr("lambda"))));
  config.run.balance.layers = LayerReduction::Sum;
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("lambda of a layer 0.032)")));
  EXPECT_THAT(study_notes(expand(config)), Each(Not(HasSubstr("worst case"))));
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("not ranked")));
}

TEST(StudyNotes, WarnOfAFewHeldOutSequences) {
  const TestbedConfig config = make_config();
  const std::vector<PlannedRun> runs = expand(config);
  std::vector<RunResultRow> results = make_results(runs);
  EXPECT_THAT(make_study(config, runs, results).notes, Each(Not(HasSubstr("held-out sequences"))));
  results[0].evaluation->sequences = 511;
  EXPECT_THAT(make_study(config, runs, results).notes,
              Contains(HasSubstr("Evaluated on 511 (arm wide) held-out sequences; with fewer than 512")));
  for (RunResultRow& result : results) result.evaluation->sequences = 40;
  EXPECT_THAT(make_study(config, runs, results).notes, Contains(HasSubstr("Evaluated on 40 held-out sequences; ")));
}

TEST(StudyNotes, NameTheArmsWhereTheyDiffer) {
  TestbedConfig config = make_config();
  config.arms[1].overrides.emplace_back("data.composition=mixed");
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("Training micro-batches of arm wide hold one domain only")));
  config.arms[0].overrides.emplace_back("balance.coefficient=0.0336");
  EXPECT_THAT(study_notes(expand(config)), Contains(HasSubstr("lambda of a layer 0.0084) is above the 0.008")));
}

TEST(StudyJson, HoldsWhatTheReportReads) {
  const TestbedConfig config = make_config();
  const std::vector<PlannedRun> runs = expand(config);
  const nlohmann::json json = nlohmann::json::parse(study_json(config, make_study(config, runs, make_results(runs))));
  EXPECT_EQ(json["schema"], 1);
  EXPECT_EQ(json["runs"][1]["folder"], "null-seed0");
  EXPECT_EQ(json["runs"][1]["evaluated"], (nlohmann::json{{"step", 0}, {"loss", 4.5}, {"specialization", 0.125}}));
  EXPECT_EQ(json["arms"][1]["kind"], "floor");
  EXPECT_EQ(json["arms"][1]["description"], "does not learn");
  EXPECT_EQ(json["claims"][0]["verdict"], "holds");
  EXPECT_EQ(json["arms"][0]["specialization"]["mean"], 0.625);
  EXPECT_FALSE(json["arms"][1]["specialization"].contains("interval_95"));
}

TEST(StudyJson, HasNoNumbersBeforeTheFirstResult) {
  const TestbedConfig config = make_config();
  const std::vector<PlannedRun> runs = expand(config);
  std::vector<RunResultRow> results = make_results(runs);
  for (RunResultRow& result : results) result.evaluation.reset();
  const nlohmann::json json = nlohmann::json::parse(study_json(config, make_study(config, runs, results)));
  EXPECT_TRUE(json["arms"][0]["specialization"].is_null());
  EXPECT_TRUE(json["runs"][0]["evaluated"].is_null());
  EXPECT_EQ(json["claims"][0]["verdict"], "undecided");
}

}  // namespace
}  // namespace switchyard
