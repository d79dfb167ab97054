// Whole runs on a made-up data set: interruption and resumption to the same bits, the run folder, and what is refused.

#include "switchyard/train/run.hpp"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <limits>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/model/weights_file.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/run_store.hpp"
#include "switchyard/train/schedule.hpp"
#include "tests/train/fixtures.hpp"
#include "tests/train/run_fixture.hpp"

namespace switchyard {
namespace {

TEST_F(RunTest, LearnsAndLeavesAWholeRunFolder) {
  RunConfig run = config();
  run.steps = 60;
  run.optimizer.learning_rate = 0.02;
  run.evaluation.every = 30;
  const RunResult result = start(run, "a");
  EXPECT_EQ(result.reason, EndReason::Done);
  EXPECT_EQ(result.step, 60);

  const RunLog written = log("a");
  ASSERT_EQ(written.steps.size(), 60U);
  EXPECT_LT(written.steps.back().loss, written.steps.front().loss - 0.5);
  EXPECT_EQ(written.steps.back().tokens, 60 * 3 * 2 * 16);
  for (int64_t step = 0; step < 60; ++step) {
    EXPECT_EQ(written.steps[static_cast<size_t>(step)].learning_rate, learning_rate_at(run.optimizer, step, 60)) << step;
  }
  EXPECT_EQ(written.start.arm, "tiny");
  EXPECT_EQ(written.start.scope, "optimizer_batch");
  EXPECT_THAT(written.start.domains, testing::ElementsAre("alpha", "beta", "gamma"));
  EXPECT_EQ(written.start.num_layers, 2);
  EXPECT_EQ(written.start.data_hash, sha256_file(scratch_.path() / "data" / "manifest.json"));
  ASSERT_EQ(written.evaluations.size(), 2U);
  EXPECT_EQ(written.evaluations[0].step, 30);
  EXPECT_EQ(written.evaluations[1].step, 60);
  EXPECT_EQ(written.evaluations[1].sequences, 12);
  EXPECT_EQ(written.evaluations[1].tokens, 12 * 16);
  ASSERT_TRUE(written.end.has_value());
  EXPECT_EQ(written.end->reason, "done");

  EXPECT_EQ(list_checkpoints(folder("a")).size(), 2U);  // keep_last
  EXPECT_EQ(list_checkpoints(folder("a")).back().filename(), "step-00000060");
  RunConfig resolved;
  read_config(parse_config_file(folder("a") / "config.toml"), resolved);
  run.arm = run.name;
  EXPECT_EQ(resolved, run);

  const auto rows = RunStore(folder("a").parent_path() / kRunStoreName).rows();
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_EQ(rows[0].folder, "a");
  EXPECT_EQ(rows[0].status, "done");
  EXPECT_EQ(rows[0].step, 60);
  EXPECT_EQ(rows[0].loss, written.evaluations[1].loss);
  EXPECT_EQ(rows[0].specialization, written.evaluations[1].specialization);
}

TEST_F(RunTest, SameSeedSameBitsAndAnotherSeedNot) {
  RunConfig run = config();
  start(run, "a");
  start(run, "b");
  expect_same_run("a", "b");
  run.seed = 6;
  start(run, "c");
  EXPECT_NE(log("a").steps.back().loss, log("c").steps.back().loss);
}

TEST_F(RunTest, SameBitsForAFixedNumberOfThreads) {
  RunConfig run = config();
  run.execution.threads = 2;
  start(run, "a");
  EXPECT_EQ(at::get_num_threads(), 2);
  start(run, "b");
  expect_same_run("a", "b");
}

// Six steps run through more than one epoch of the made-up data, so the order of windows is resumed too.
TEST_F(RunTest, ResumesToTheSameBitsInEveryScope) {
  for (const std::string scope : {"optimizer_batch", "prefix", "previous_step", "ema(0.9)"}) {
    RunConfig run = config();
    parse(scope, run.balance.scope);
    run.checkpoint.every = 0;
    run.steps = 12;
    start(run, scope + "-whole");
    const RunResult stopped = start_and_stop(run, scope + "-parts", 5);
    EXPECT_EQ(stopped.reason, EndReason::Interrupted);
    EXPECT_EQ(stopped.step, 5);
    EXPECT_EQ(log(scope + "-parts").end->reason, "interrupted");
    EXPECT_TRUE(log(scope + "-parts").evaluations.empty());
    EXPECT_EQ(resume(run, scope + "-parts").reason, EndReason::Done);
    expect_same_run(scope + "-whole", scope + "-parts");
  }
}

TEST_F(RunTest, ResumesAfterACrashFromTheLastPeriodicCheckpoint) {
  const RunConfig run = config();
  start(run, "whole");
  start_and_crash(run, "crashed", 5);  // checkpoint at 3; the log has 5 steps
  EXPECT_EQ(log("crashed").steps.size(), 5U);
  EXPECT_EQ(RunStore(folder("x").parent_path() / kRunStoreName).rows()[0].status, "failed");
  resume(run, "crashed");
  expect_same_run("whole", "crashed");
}

TEST_F(RunTest, ResumesAfterACrashBeforeTheFirstCheckpoint) {
  const RunConfig run = config();
  start(run, "whole");
  start_and_crash(run, "crashed", 2);
  resume(run, "crashed");
  expect_same_run("whole", "crashed");
  EXPECT_THAT(notices("crashed"), testing::Contains(testing::HasSubstr("starts from step 0 again")));
}

TEST_F(RunTest, ACrashBetweenCheckpointAndEvaluationLosesNoEvaluation) {
  RunConfig run = config();
  run.evaluation.every = 3;
  start(run, "whole");
  class ThrowAtCheckpoint : public ProgressSink {
    void on_checkpoint(const fs::path&) override { throw std::runtime_error("power cut"); }
  } progress;
  EXPECT_THROW((void)run_training(run, {folder("crashed"), Resume::No, nullptr, "test"}, progress), std::runtime_error);
  EXPECT_EQ(log("crashed").evaluations.size(), 0U);
  resume(run, "crashed");
  expect_same_run("whole", "crashed");
  ASSERT_EQ(log("crashed").evaluations.size(), log("whole").evaluations.size());
  EXPECT_EQ(log("crashed").evaluations.front().step, 3);
}

TEST_F(RunTest, ADoneRunIsEvaluatedAgainWhereMoreIsAskedFor) {
  RunConfig run = config();
  start(run, "a");
  run.evaluation.sequences_per_domain = 6;
  resume(run, "a");
  ASSERT_EQ(log("a").evaluations.size(), 2U);
  EXPECT_GT(log("a").evaluations.back().sequences, log("a").evaluations.front().sequences);
}

TEST_F(RunTest, ResumingADoneRunChangesNothing) {
  const RunConfig run = config();
  start(run, "a");
  const RunLog before = log("a");
  const RunResult result = resume(run, "a");
  EXPECT_EQ(result.reason, EndReason::Done);
  ASSERT_TRUE(result.evaluation.has_value());
  EXPECT_EQ(result.evaluation->loss, before.evaluations.back().loss);
  EXPECT_EQ(log("a").evaluations.size(), 1U);
  expect_same_steps(log("a"), before);
}

TEST_F(RunTest, EvaluationLeavesNoTraceInTraining) {
  RunConfig run = config();
  start(run, "a");
  run.evaluation.every = 1;
  start(run, "b");
  expect_same_steps(log("a"), log("b"));
  EXPECT_EQ(log("b").evaluations.size(), 6U);
}

TEST_F(RunTest, DamagedCheckpointFallsBackToTheOneBeforeWithANotice) {
  RunConfig run = config();
  run.checkpoint.every = 2;
  start(run, "whole");
  start_and_stop(run, "a", 4);
  const fs::path newest = list_checkpoints(folder("a")).back();
  std::fstream(newest / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary).seekp(2000).put('\x7f');
  resume(run, "a");
  EXPECT_THAT(notices("a"), testing::Contains(testing::AllOf(testing::HasSubstr("step-00000004 was passed over"),
                                                             testing::HasSubstr("model.safetensors is damaged"))));
  expect_same_run("whole", "a");
}

// A damaged one of a later step takes no place among the newest, or the only good one would be removed.
TEST_F(RunTest, ADamagedLaterCheckpointDoesNotCostTheGoodOne) {
  RunConfig run = config();
  run.checkpoint.every = 2;
  start_and_damage_newest(run, "a", 4);
  run.checkpoint.keep_last = 1;
  resume_and_stop(run, "a", 3);
  resume(run, "a");
  EXPECT_EQ(log("a").steps.size(), 6U);
  EXPECT_THAT(notices("a"), testing::Not(testing::Contains(testing::HasSubstr("step 0 again"))));
}

// Nor does a damaged one of an earlier step than the next save.
TEST_F(RunTest, ADamagedEarlierCheckpointDoesNotCostTheGoodOne) {
  RunConfig run = config();
  run.checkpoint.every = 2;
  start_and_damage_newest(run, "a", 4);
  run.checkpoint.every = 0;
  resume_and_stop(run, "a", 5);  // from 2
  const std::vector<fs::path> kept = list_checkpoints(folder("a"));
  ASSERT_EQ(kept.size(), 2U);
  EXPECT_EQ(kept[0].filename(), "step-00000002");
  EXPECT_EQ(kept[1].filename(), "step-00000005");
}

// A whole one in the place of a damaged one counts again.
TEST_F(RunTest, AReplacedCheckpointIsKept) {
  RunConfig run = config();
  run.checkpoint.every = 2;
  start_and_damage_newest(run, "a", 4);
  resume(run, "a");  // from 2, by 4 to 6
  ASSERT_EQ(list_checkpoints(folder("a")).size(), 2U);
  EXPECT_EQ(list_checkpoints(folder("a")).front().filename(), "step-00000004");
  EXPECT_NO_THROW((void)verify_checkpoint(list_checkpoints(folder("a")).front()));
}

// Folders that the user made beside the checkpoints.
TEST_F(RunTest, OnlyStepAndANumberIsACheckpoint) {
  RunConfig run = config();
  run.checkpoint.every = 2;
  start_and_stop(run, "a", 4);
  const fs::path checkpoints = folder("a") / "checkpoints";
  const std::vector<std::string> mine = {"step-best", "step-00000002-mine", "step-", "step-+2", "step--2", "step-99999999999999999999"};
  for (const std::string& name : mine) fs::copy(checkpoints / "step-00000002", checkpoints / name, fs::copy_options::recursive);
  run.checkpoint.keep_last = 1;
  resume(run, "a");
  EXPECT_EQ(log("a").steps.size(), 6U);
  EXPECT_EQ(list_checkpoints(folder("a")), std::vector<fs::path>{checkpoints / "step-00000006"});
  for (const std::string& name : mine) EXPECT_TRUE(fs::exists(checkpoints / name / "manifest.json")) << name;
  for (const std::string name : {"step-100000000", "step-99999999"}) fs::create_directory(checkpoints / name);
  EXPECT_EQ(list_checkpoints(folder("a")).back().filename(), "step-100000000");
}

TEST_F(RunTest, CheckpointsThatCannotBeReadAreNotNone) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  fs::rename(folder("a") / "checkpoints", folder("a") / "moved");
  std::ofstream(folder("a") / "checkpoints") << "a file\n";
  try {
    resume(run, "a");
    FAIL() << "began anew";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("cannot read the checkpoints in"));
  }
  EXPECT_EQ(log("a").steps.size(), 4U);
}

std::string problem_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(RunTest, AModelThatCannotFitIsRefusedBeforeAFolderIsMade) {
  RunConfig run = config();
  run.model.expert_width = int64_t{1} << 40;
  EXPECT_THAT(problem_of([&] { (void)start(run, "a"); }), testing::HasSubstr("million weights"));
  EXPECT_FALSE(fs::exists(folder("a")));
}

// The last update has no loss after it that would show it.
TEST_F(RunTest, WeightsThatDivergedAreNotSaved) {
  RunConfig run = config();
  run.steps = 1;
  run.optimizer.learning_rate = 1e39;  // more than fp32 holds
  run.optimizer.warmup_steps = 0;
  EXPECT_THAT(problem_of([&] { (void)start(run, "a"); }),
              testing::AllOf(testing::HasSubstr("after step 1 '"), testing::HasSubstr("not finite, so it was not saved")));
  EXPECT_TRUE(list_checkpoints(folder("a")).empty());
}

TEST_F(RunTest, WeightsThatDivergedAreNotExported) {
  (void)start(config(), "a");
  const fs::path checkpoint = list_checkpoints(folder("a")).back(), file = checkpoint / "model.safetensors";
  const std::string before = sha256_file(file);
  TensorMap weights = load_tensors(file).tensors;
  weights.at("model.norm.weight").fill_(std::numeric_limits<float>::quiet_NaN());
  save_tensors(file, weights);
  std::string manifest = read_file(checkpoint / "manifest.json");
  manifest.replace(manifest.find(before), before.size(), sha256_file(file));
  write_file_atomically(checkpoint / "manifest.json", manifest);
  EXPECT_THAT(problem_of([&] { (void)load_checkpoint_model(checkpoint, ComputeType::Float32); }),
              testing::HasSubstr("'model.norm.weight' has values that are not finite"));
}

TEST_F(RunTest, RefusesWhenEveryCheckpointIsDamaged) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  for (const fs::path& checkpoint : list_checkpoints(folder("a"))) fs::remove(checkpoint / "optimizer.safetensors");
  try {
    resume(run, "a");
    FAIL() << "resumed without optimizer state";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("step-00000003"), testing::HasSubstr("step-00000004"),
                                             testing::HasSubstr("optimizer.safetensors is missing")));
  }
}

TEST_F(RunTest, RefusesToResumeAsSomethingElseAndNamesTheKey) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  RunConfig other = run;
  other.model.width = 32;
  other.balance.scope.kind = ScopeKind::MicroBatch;
  try {
    resume(other, "a");
    FAIL() << "resumed with another model";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("model.width was 16, now 32"),
                                             testing::HasSubstr("balance.scope was \"optimizer_batch\"")));
  }
  other = run;
  other.steps = 8;
  other.checkpoint.keep_last = 1;
  EXPECT_EQ(resume(other, "a").step, 8);
  EXPECT_THAT(notices("a"), testing::Contains(testing::HasSubstr("resumed with steps = 8, was 6")));
}

TEST_F(RunTest, RefusesToEndBeforeWhatWasDone) {
  RunConfig run = config();
  start(run, "a");
  const int64_t done = run.steps;
  run.steps = done - 1;
  EXPECT_THAT([&] { resume(run, "a"); }, testing::ThrowsMessage<ConfigError>(testing::HasSubstr(
                                             join_text("steps is ", done - 1, ", but this run has done ", done, " steps"))));
  EXPECT_THAT(read_file(folder("a") / "config.toml"), testing::HasSubstr(join_text("steps = ", done, "\n")));
}

TEST_F(RunTest, RefusesADataSetThatChanged) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  const fs::path manifest = scratch_.path() / "data" / "manifest.json";
  const std::string text = read_file(manifest);
  write_file_atomically(manifest, text + "\n");
  EXPECT_THROW(resume(run, "a"), DataError);
}

TEST_F(RunTest, NeverWritesIntoAFolderThatHoldsSomething) {
  const RunConfig run = config();
  fs::create_directories(folder("a"));
  write_file_atomically(folder("a") / "thesis.txt", "years of work");
  EXPECT_THROW(start(run, "a"), UsageError);
  EXPECT_THROW(resume(run, "a"), UsageError);
  EXPECT_EQ(read_file(folder("a") / "thesis.txt"), "years of work");
  EXPECT_THROW(resume(run, "missing"), UsageError);
}

TEST_F(RunTest, RunThatCannotStartLeavesNoFolder) {
  RunConfig run = config();
  run.model.vocab_size = 41;
  try {
    start(run, "a");
    FAIL() << "a vocabulary of 41 was taken for data of 40";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("set model.vocab_size = 40"));
  }
  run = config();
  run.data.path = (scratch_.path() / "nowhere").string();
  EXPECT_THROW(start(run, "a"), DataError);
  EXPECT_FALSE(fs::exists(folder("a")));
  EXPECT_THROW(start(run, "b/c/d"), DataError);
  EXPECT_FALSE(fs::exists(folder("b")));
  fs::create_directories(folder("mine"));  // not made by the run
  EXPECT_THROW(start(run, "mine"), DataError);
  EXPECT_TRUE(fs::is_empty(folder("mine")));
}

TEST_F(RunTest, OneProcessAtATime) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  const RunFolder other(folder("a"), Resume::Yes);
  EXPECT_THROW(resume(run, "a"), UsageError);
}

TEST_F(RunTest, NoticesSayWhatAReaderMustKnow) {
  RunConfig run = config();
  parse("previous_step", run.balance.scope);
  run.execution.dtype = ComputeType::Auto;
  run.steps = 2;
  start(run, "a");
  EXPECT_THAT(notices("a"), testing::UnorderedElementsAre(testing::HasSubstr("execution.dtype = auto: this run computes in"),
                                                          testing::HasSubstr("12 held-out sequences"),
                                                          testing::HasSubstr("is evaluated on 4 held-out documents"),
                                                          testing::HasSubstr("step 1 lacks a balancing loss, that over previous_step")));
  EXPECT_EQ(log("a").start.layers, "mean");
  EXPECT_FALSE(log("a").steps[0].lbl.has_value());
  EXPECT_TRUE(log("a").steps[1].lbl.has_value());
}

TEST_F(RunTest, TrainedModelCanBeReadBackAlone) {
  const RunConfig run = config();
  start(run, "a");
  const Decoder model = load_checkpoint_model(list_checkpoints(folder("a")).back(), ComputeType::Float32);
  EXPECT_EQ(model.config(), run.model);
}

}  // namespace
}  // namespace switchyard
