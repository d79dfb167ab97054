#include "switchyard/testbed/runner.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "switchyard/core/files.hpp"
#include "switchyard/testbed/run_folder.hpp"
#include "switchyard/testbed/testbed.hpp"
#include "tests/scratch_folder.hpp"
#include "tests/testbed/small_data.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
namespace fs = std::filesystem;

// Behaviours of fake_train.
constexpr const char* kFails = "model.init_deviation=1.0";
constexpr const char* kWaits = "model.init_deviation=2.0";
constexpr const char* kLeavesNoLog = "model.init_deviation=3.0";

class NoSink : public TestbedSink {
 public:
  void update(const std::vector<RunProgress>&, int64_t) override {}
};

// Asks to stop once as many runs as given have taken their first step.
class StoppingSink : public TestbedSink {
 public:
  StoppingSink(std::atomic<bool>& stop, int64_t after) : stop_(stop), after_(after) {}
  void update(const std::vector<RunProgress>& runs, int64_t) override {
    int64_t stepping = 0;
    for (const RunProgress& run : runs) stepping += run.status == RunStatus::Running && run.step > 0 ? 1 : 0;
    most_running = std::max(most_running, stepping);
    if (stepping >= after_) stop_.store(true);
  }
  int64_t most_running = 0;

 private:
  std::atomic<bool>& stop_;
  int64_t after_;
};

// One for all tests that do not change it.
fs::path common_data() {
  static const test::ScratchFolder scratch;
  if (!fs::exists(scratch.path() / "data")) test::write_small_data(scratch.path() / "data", 12);
  return scratch.path() / "data";
}

TestbedConfig make_config(const std::vector<std::vector<std::string>>& overrides_of_arms) {
  TestbedConfig config;
  config.seeds = {0, 1};
  config.run.steps = 4;
  test::use_small_data(config.run, common_data());
  for (size_t index = 0; index < overrides_of_arms.size(); ++index) {
    ArmConfig arm;
    arm.name = "arm" + std::to_string(index);
    arm.overrides = overrides_of_arms[index];
    config.arms.push_back(arm);
  }
  return config;
}

RunnerOptions make_options(const fs::path& folder) {
  RunnerOptions options;
  options.folder = folder;
  options.command = {SWITCHYARD_FAKE_TRAIN};
  options.cores = 2;
  return options;
}

std::vector<RunStatus> statuses(const TestbedResult& result) {
  std::vector<RunStatus> list;
  for (const RunProgress& run : result.runs) list.push_back(run.status);
  return list;
}

TestbedResult run(const TestbedConfig& config, const fs::path& folder) {
  NoSink sink;
  return run_testbed(config, make_options(folder), sink);
}

TEST(PlanProcesses, PrefersRunsToThreads) {
  EXPECT_EQ(plan_processes(2, 9, 0).jobs, 2);
  EXPECT_EQ(plan_processes(2, 9, 0).threads, 1);
  EXPECT_EQ(plan_processes(8, 3, 0).jobs, 3);
  EXPECT_EQ(plan_processes(8, 3, 0).threads, 2);
  EXPECT_EQ(plan_processes(8, 9, 1).threads, 8);
  EXPECT_EQ(plan_processes(1, 9, 4).jobs, 4);
  EXPECT_EQ(plan_processes(1, 9, 4).threads, 1);
  EXPECT_EQ(plan_processes(4, 0, 0).jobs, 1);
}

TEST(RunTestbed, RunsEachArmOnEachSeedOnce) {
  const test::ScratchFolder scratch;
  const TestbedConfig config = make_config({{"balance.coefficient=0.5"}, {"balance.coefficient=0.25"}});
  const TestbedResult first = run(config, scratch.path());
  EXPECT_TRUE(first.all_done());
  EXPECT_EQ(statuses(first), std::vector<RunStatus>(4, RunStatus::Done));
  EXPECT_NEAR(first.study.arms[0].specialization.mean, 0.505, 1e-12);
  EXPECT_EQ(read_file(scratch.path() / "arm1-seed1" / "starts"), "start 1\n");  // one thread each
  const TestbedResult second = run(config, scratch.path());
  EXPECT_EQ(statuses(second), std::vector<RunStatus>(4, RunStatus::Skipped));
  EXPECT_TRUE(second.all_done());
  EXPECT_EQ(read_file(scratch.path() / "arm1-seed1" / "starts"), "start 1\n");
  EXPECT_NEAR(second.study.arms[1].specialization.mean, 0.255, 1e-12);
}

TEST(RunTestbed, ReportsAFailedRunAndGoesOn) {
  const test::ScratchFolder scratch;
  TestbedConfig config = make_config({{kFails}, {}, {kLeavesNoLog}});
  config.seeds = {0};
  const TestbedResult result = run(config, scratch.path());
  EXPECT_FALSE(result.all_done());
  EXPECT_THAT(result.runs[0].error, AllOf(HasSubstr("exit code 3"), HasSubstr("the reason it failed")));
  EXPECT_EQ(statuses(result), (std::vector<RunStatus>{RunStatus::Failed, RunStatus::Done, RunStatus::Failed}));
  EXPECT_EQ(result.study.arms[0].specialization.count, 0);
  EXPECT_EQ(result.study.arms[1].specialization.count, 1);
}

TEST(RunTestbed, StopsChildrenAndResumesThem) {
  const test::ScratchFolder scratch;
  const TestbedConfig config = make_config({{kWaits}, {}});
  std::atomic<bool> stop{false};
  StoppingSink sink(stop, 1);
  RunnerOptions options = make_options(scratch.path());
  options.jobs = 1;
  options.stop = &stop;
  const TestbedResult stopped = run_testbed(config, options, sink);
  EXPECT_FALSE(stopped.all_done());
  EXPECT_EQ(stopped.runs[0].step, 2);  // it ended a step after its last line of progress
  EXPECT_EQ(statuses(stopped), (std::vector<RunStatus>{RunStatus::Interrupted, RunStatus::Waiting, RunStatus::Waiting, RunStatus::Waiting}));
  // The second attempt meets one waiting run more: that of seed 1.
  stop.store(false);
  const TestbedResult again = run_testbed(config, options, sink);
  EXPECT_EQ(read_file(scratch.path() / "arm0-seed0" / "starts"), "start 2\nresume 2\n");
  EXPECT_EQ(statuses(again), (std::vector<RunStatus>{RunStatus::Done, RunStatus::Done, RunStatus::Interrupted, RunStatus::Waiting}));
  EXPECT_TRUE(run(config, scratch.path()).all_done());
  EXPECT_EQ(read_file(scratch.path() / "arm1-seed0" / "starts"), "start 2\n");
}

// Somebody else may begin a run while it waits for its turn.
TEST(RunTestbed, LeavesARunThatAppearedWhileItWaited) {
  const test::ScratchFolder scratch;
  class Other : public TestbedSink {
   public:
    explicit Other(fs::path folder) : folder_(std::move(folder)) {}
    void update(const std::vector<RunProgress>& runs, int64_t) override {
      if (runs[0].status != RunStatus::Running || fs::exists(folder_)) return;
      fs::create_directory(folder_);
      std::ofstream(folder_ / "config.toml") << to_toml(runs_[1].config);
      std::ofstream(folder_ / "notes") << "precious";
    }
    std::vector<PlannedRun> runs_;

   private:
    fs::path folder_;
  } sink(scratch.path() / "arm0-seed1");
  const TestbedConfig config = make_config({{}});
  sink.runs_ = expand(config);
  RunnerOptions options = make_options(scratch.path());
  options.jobs = 1;
  const TestbedResult result = run_testbed(config, options, sink);
  EXPECT_EQ(statuses(result), (std::vector<RunStatus>{RunStatus::Done, RunStatus::Failed}));
  EXPECT_THAT(result.runs[1].error, AllOf(HasSubstr("arm0-seed1 has changed since this testbed began"), HasSubstr("repeat the command")));
  EXPECT_EQ(read_file(scratch.path() / "arm0-seed1" / "notes"), "precious");
  EXPECT_FALSE(fs::exists(scratch.path() / "configs" / "arm0-seed1.toml"));
  EXPECT_TRUE(run(config, scratch.path()).all_done()) << "the command, repeated, takes it up";
}

TEST(RunTestbed, RunsTwoAtATime) {
  const test::ScratchFolder scratch;
  std::atomic<bool> stop{false};
  StoppingSink sink(stop, 2);
  RunnerOptions options = make_options(scratch.path());
  options.stop = &stop;
  (void)run_testbed(make_config({{kWaits}, {kWaits}}), options, sink);
  EXPECT_EQ(sink.most_running, 2);
}

TEST(RunTestbed, RefusesAChangedConfigurationAndTouchesNothing) {
  const test::ScratchFolder scratch;
  TestbedConfig config = make_config({{"balance.coefficient=0.5"}});
  (void)run(config, scratch.path());
  const std::string before = read_file(scratch.path() / "testbed.json");
  config.arms[0].overrides = {"balance.coefficient=0.75"};
  EXPECT_THAT([&] { (void)run(config, scratch.path()); },
              ThrowsMessage<UsageError>(AllOf(HasSubstr("arm0-seed0"), HasSubstr("balance.coefficient"), HasSubstr("0.5"),
                                              HasSubstr("0.75"), HasSubstr("--out"))));
  EXPECT_EQ(read_file(scratch.path() / "testbed.json"), before);
  config.arms[0].overrides = {"balance.coefficient=0.5", "execution.threads=3", "checkpoint.every=1"};
  EXPECT_EQ(statuses(run(config, scratch.path())), std::vector<RunStatus>(2, RunStatus::Skipped));
}

TEST(RunTestbed, RefusesToMixRunsOnDifferentData) {
  const test::ScratchFolder scratch;
  const fs::path data = scratch.path() / "data";
  test::write_small_data(data, 12);
  TestbedConfig config = make_config({{"data.path=" + data.string()}});
  config.seeds = {0};
  ASSERT_TRUE(run(config, scratch.path() / "out").all_done());
  config.seeds = {0, 1};
  test::write_small_data(data, 20);
  EXPECT_THAT([&] { (void)run(config, scratch.path() / "out"); },
              ThrowsMessage<UsageError>(AllOf(HasSubstr("arm0-seed0 ran on another data set"), HasSubstr("is there now"),
                                              HasSubstr("--out"))));
  EXPECT_FALSE(fs::exists(scratch.path() / "out" / "arm0-seed1"));
  test::write_small_data(data, 12);
  EXPECT_TRUE(run(config, scratch.path() / "out").all_done());
  // What was deleted leaves finished runs comparable.
  fs::remove(data / "manifest.json");
  EXPECT_EQ(statuses(run(config, scratch.path() / "out")), std::vector<RunStatus>(2, RunStatus::Skipped));
}

TEST(RunTestbed, StartsNothingAndMakesNoFolderWithoutItsDataSet) {
  const test::ScratchFolder scratch;
  TestbedConfig config = make_config({{}, {}});
  config.run.data.path = (scratch.path() / "none").string();
  EXPECT_THAT([&] { (void)run(config, scratch.path() / "out"); },
              ThrowsMessage<DataError>(HasSubstr("no data set in " + config.run.data.path)));
  config = make_config({{}, {"model.vocab_size=17"}});
  EXPECT_THAT([&] { (void)run(config, scratch.path() / "out"); }, ThrowsMessage<UsageError>(HasSubstr("run arm1-seed0: ")));
  EXPECT_TRUE(fs::is_empty(scratch.path()));
  // Finished runs need no data any more, others do.
  test::write_small_data(scratch.path() / "data", 12);
  config = make_config({{"data.path=" + (scratch.path() / "data").string()}});
  config.seeds = {0};
  ASSERT_TRUE(run(config, scratch.path() / "out").all_done());
  fs::remove_all(scratch.path() / "data");
  config.seeds = {0, 1};
  EXPECT_THAT([&] { (void)run(config, scratch.path() / "out"); }, ThrowsMessage<DataError>(HasSubstr("no data set in ")));
}

TEST(RunTestbed, NotesWhatFewHeldOutDocumentsDo) {
  const test::ScratchFolder scratch;
  test::write_small_data(scratch.path() / "data", 1);
  const TestbedConfig config = make_config({{"data.path=" + (scratch.path() / "data").string()}});
  EXPECT_THAT(run(config, scratch.path() / "out").study.notes, Contains(HasSubstr("S is 0 whatever the router does")).Times(1));
  EXPECT_THAT(read_file(scratch.path() / "out" / "testbed.json"), HasSubstr("S is 0 whatever the router does"));
}

TEST(RunTestbed, RefusesAFolderThatAnotherWorksIn) {
  const test::ScratchFolder scratch;
  class Second : public TestbedSink {
   public:
    explicit Second(const fs::path& folder) : folder_(folder) {}
    void update(const std::vector<RunProgress>&, int64_t) override {
      EXPECT_THAT([&] { (void)run(make_config({{}}), folder_); }, ThrowsMessage<UsageError>(HasSubstr("another testbed works in")));
    }

   private:
    const fs::path& folder_;
  } sink(scratch.path());
  EXPECT_TRUE(run_testbed(make_config({{}}), make_options(scratch.path()), sink).all_done());
}

TEST(RunTestbed, GivesTheLastRunsAsManyThreadsAsTheFirst) {
  const test::ScratchFolder scratch;
  TestbedConfig config = make_config({{}, {}});
  RunnerOptions options = make_options(scratch.path());
  options.cores = 4;
  NoSink sink;
  ASSERT_TRUE(run_testbed(config, options, sink).all_done());
  const std::string before = read_file(scratch.path() / "arm1-seed1" / "starts");
  fs::remove_all(scratch.path() / "arm1-seed1");
  ASSERT_TRUE(run_testbed(config, options, sink).all_done());
  EXPECT_EQ(read_file(scratch.path() / "arm1-seed1" / "starts"), before);
}

TEST(InspectRunFolder, RefusesAFolderThatIsNoRun) {
  const test::ScratchFolder scratch;
  std::ofstream(scratch.path() / "thesis.txt") << "not a run";
  EXPECT_THAT([&] { (void)inspect_run_folder(scratch.path(), RunConfig()); },
              ThrowsMessage<DataError>(HasSubstr("has no config.toml")));
}

TEST(InspectRunFolder, TakesALogWithoutStartForAnUnfinishedRun) {
  const test::ScratchFolder scratch;
  std::ofstream(scratch.path() / "config.toml") << to_toml(RunConfig());
  for (const char* log : {"", R"({"kind":"start","schema":1,"na)"}) {
    std::ofstream(scratch.path() / "log.jsonl") << log;
    EXPECT_EQ(inspect_run_folder(scratch.path(), RunConfig()), FolderState::Unfinished);
  }
}

TEST(InspectRunFolder, TakesALockAloneForAnAbandonedStart) {
  const test::ScratchFolder scratch;
  std::ofstream(scratch.path() / ".lock") << "";
  EXPECT_EQ(inspect_run_folder(scratch.path(), RunConfig()), FolderState::Missing);
  std::ofstream(scratch.path() / ".config.toml.part-77") << "name = ";
  EXPECT_EQ(inspect_run_folder(scratch.path(), RunConfig()), FolderState::Missing);
  EXPECT_EQ(inspect_run_folder(scratch.path() / "none", RunConfig()), FolderState::Missing);
}

}  // namespace
}  // namespace switchyard
