// Runs whose log, folder or checkpoints were damaged or taken away, while they ran or before they were resumed.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/folder_lock.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "tests/train/run_fixture.hpp"

namespace {

// What was synced of each log since the process began: its bytes at the last call.
std::map<std::string, uintmax_t>& synced_logs() {
  static std::map<std::string, uintmax_t> logs;
  return logs;
}

}  // namespace

// In the place of the C library's, which it calls: no test can see from outside what is on the disk.
extern "C" int fdatasync(int file) {
  std::error_code ignored;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(file), ignored);
  if (path.filename() == "log.jsonl") synced_logs()[path.string()] = std::filesystem::file_size(path, ignored);
  return static_cast<int>(::syscall(SYS_fdatasync, file));
}

namespace switchyard {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

/// Does something at the first checkpoint, and something at the next.
class AtCheckpoints : public ProgressSink {
 public:
  explicit AtCheckpoints(std::vector<std::function<void()>> parts) : parts_(std::move(parts)) {}
  void on_checkpoint(const fs::path&) override {
    if (done_ < parts_.size()) parts_[done_]();
    ++done_;
  }

 private:
  std::vector<std::function<void()>> parts_;
  size_t done_ = 0;
};

class RunDamageTest : public RunTest {
 protected:
  [[nodiscard]] std::string problem_of_start(const std::string& name, std::vector<std::function<void()>> parts) const {
    AtCheckpoints progress(std::move(parts));
    return problem_of([&] { (void)run_training(often_saved(), {folder(name), Resume::No, nullptr, "test"}, progress); });
  }
  [[nodiscard]] std::string problem_of_resume(const RunConfig& run, const std::string& name) const {
    return problem_of([&] { (void)resume(run, name); });
  }
  [[nodiscard]] RunConfig often_saved() const {
    RunConfig run = config();
    run.checkpoint.every = 1;
    return run;
  }
  [[nodiscard]] RunConfig automatic() const {
    RunConfig run = config();
    run.execution.dtype = ComputeType::Auto;
    return run;
  }
  [[nodiscard]] std::vector<std::string> log_lines(const std::string& name) const {
    std::istringstream text(read_file(folder(name) / "log.jsonl"));
    std::vector<std::string> lines;
    for (std::string line; std::getline(text, line);) lines.push_back(line);
    return lines;
  }
  void write_log(const std::string& name, const std::vector<std::string>& lines) const {
    std::ofstream file(folder(name) / "log.jsonl", std::ios::binary | std::ios::trunc);
    for (const std::string& line : lines) file << line << '\n';
  }
  /// As on another processor, or by hand; hashes are brought up to date.
  void set_saved_type(const std::string& name, const std::string& type) const {
    for (const fs::path& checkpoint : list_checkpoints(folder(name))) {
      const std::string before = sha256_file(checkpoint / "state.json");
      replace(checkpoint / "state.json", "\"compute_type\": \"" + here() + "\"", type.empty() ? "\"none\": 0" : "\"compute_type\": \"" + type + "\"");
      std::string manifest = read_file(checkpoint / "manifest.json");
      const std::string bytes = join_text("\"bytes\": ", fs::file_size(checkpoint / "state.json"));
      const size_t place = manifest.find("\"state.json\"");
      const size_t begin = manifest.find("\"bytes\"", place);
      manifest.replace(begin, manifest.find(',', begin) - begin, bytes);
      write_file_atomically(checkpoint / "manifest.json", manifest);
      replace(checkpoint / "manifest.json", before, sha256_file(checkpoint / "state.json"));
    }
  }
  void set_logged_type(const std::string& name, const std::string& type) const {
    replace(folder(name) / "log.jsonl", "\"compute_type\":\"" + here() + "\"", "\"compute_type\":\"" + type + "\"");
  }
  static std::string here() { return to_string(resolve_compute_type(ComputeType::Auto)); }
  static std::string other() { return here() == "float32" ? "bfloat16" : "float32"; }
  static void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::string text = read_file(file);
    ASSERT_NE(text.find(from), std::string::npos) << file << " has no " << from;
    write_file_atomically(file, text.replace(text.find(from), from.size(), to));
  }
  static std::string problem_of(const std::function<void()>& work) {
    try {
      work();
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  }
};

bool is_step(const std::string& line, int64_t step) {
  return line.starts_with(join_text(R"({"kind":"step","step":)", step, ","));
}

// A full disk of versions that wrote the line twice: half of it, then all of it again.
TEST_F(RunDamageTest, ALineBrokenBehindTheCheckpointIsCutOffAndTold) {
  const RunConfig run = config();
  start(run, "whole");
  start_and_stop(run, "a", 4);
  std::vector<std::string> lines = log_lines("a");
  const auto step = std::ranges::find_if(lines, [](const std::string& line) { return is_step(line, 4); });
  ASSERT_NE(step, lines.end());
  lines.push_back(step->substr(0, 60) + *step);
  write_log("a", lines);
  ASSERT_EQ(problem_of_resume(run, "a"), "no error");
  expect_same_run("whole", "a");
  EXPECT_THAT(notices("a"), Contains(AllOf(HasSubstr("cut off"), HasSubstr(join_text("log.jsonl:", lines.size())))));
}

TEST_F(RunDamageTest, ALineBrokenBeforeTheCheckpointIsRefused) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  std::vector<std::string> lines = log_lines("a");
  lines.insert(std::ranges::find_if(lines, [](const std::string& line) { return is_step(line, 3); }), "{\"kind\":");
  write_log("a", lines);
  EXPECT_THAT(problem_of_resume(run, "a"), AllOf(HasSubstr("log.jsonl:"), HasSubstr("not JSON"), HasSubstr("delete that line")));
  EXPECT_EQ(log_lines("a"), lines);
}

TEST_F(RunDamageTest, StepsThatTheLogLacksAreTold) {
  const RunConfig run = config();
  start_and_stop(run, "a", 4);
  std::vector<std::string> lines = log_lines("a");
  std::erase_if(lines, [](const std::string& line) { return is_step(line, 2) || is_step(line, 3); });
  write_log("a", lines);
  resume(run, "a");
  EXPECT_EQ(log("a").steps.size(), 4U);
  EXPECT_THAT(notices("a"), Contains(HasSubstr("lacks steps 2-3")));
}

TEST_F(RunDamageTest, OfStepsThatTheLogHasTwiceTheLastIsKept) {
  const RunConfig run = config();
  start(run, "whole");
  start_and_stop(run, "a", 4);
  std::vector<std::string> lines = log_lines("a");
  const auto step = std::ranges::find_if(lines, [](const std::string& line) { return is_step(line, 2); });
  std::string first = *step;
  first.replace(first.find("\"loss\":") + 7, 0, "9");
  lines.insert(step, first);
  write_log("a", lines);
  resume(run, "a");
  expect_same_run("whole", "a");
  EXPECT_THAT(notices("a"), Contains(HasSubstr("had step 2 more than once")));
}

TEST_F(RunDamageTest, ALogThatIsWholeIsNotTalkedAbout) {
  const RunConfig run = config();
  start_and_crash(run, "a", 5);
  resume(run, "a");
  EXPECT_THAT(notices("a"), testing::Not(Contains(HasSubstr("log"))));
}

TEST_F(RunDamageTest, TheLogIsOnTheDiskBeforeTheCheckpointIs) {
  const fs::path log_path = folder("a") / "log.jsonl";
  std::vector<uintmax_t> unsynced;
  const auto look = [&] { unsynced.push_back(fs::file_size(log_path) - synced_logs()[log_path.string()]); };
  EXPECT_EQ(problem_of_start("a", {look, look, look}), "no error");
  EXPECT_EQ(unsynced, (std::vector<uintmax_t>{0, 0, 0}));
  EXPECT_EQ(synced_logs()[log_path.string()], fs::file_size(log_path));
}

TEST_F(RunDamageTest, AFolderThatIsRemovedEndsTheRunAndIsNotMadeAgain) {
  EXPECT_THAT(problem_of_start("a", {[&] { fs::remove_all(folder("a")); }}), AllOf(HasSubstr(folder("a")), HasSubstr("moved or removed")));
  EXPECT_FALSE(fs::exists(folder("a")));
}

TEST_F(RunDamageTest, AFolderThatIsMovedEndsTheRunAndCanBeResumedThere) {
  start(often_saved(), "whole");
  const std::string problem = problem_of_start("a", {[&] { fs::rename(folder("a"), folder("b")); }});
  EXPECT_THAT(problem, HasSubstr("moved or removed"));
  EXPECT_FALSE(fs::exists(folder("a")));
  resume(often_saved(), "b");
  expect_same_run("whole", "b");
}

TEST_F(RunDamageTest, AnotherFolderInThePlaceOfTheRunsIsLeftAlone) {
  const auto exchange = [&] {
    fs::rename(folder("a"), folder("b"));
    fs::create_directory(folder("a"));
  };
  EXPECT_THAT(problem_of_start("a", {exchange}), HasSubstr("moved or removed"));
  EXPECT_TRUE(fs::is_empty(folder("a")));
}

// The weights of the step are saved all the same.
TEST_F(RunDamageTest, ALogThatIsRemovedEndsTheRunBehindTheNextCheckpoint) {
  const std::string problem = problem_of_start("a", {[&] { fs::remove(folder("a") / "log.jsonl"); }});
  EXPECT_THAT(problem, AllOf(HasSubstr("log.jsonl"), HasSubstr("moved or removed")));
  EXPECT_EQ(list_checkpoints(folder("a")).back().filename(), "step-00000002");
  resume(often_saved(), "a");
  EXPECT_EQ(log("a").end->reason, "done");
  EXPECT_THAT(notices("a"), Contains(HasSubstr("lacks steps 1-2")));
}

TEST_F(RunDamageTest, ALogThatIsRemovedAtTheEndIsAnError) {
  class RemoveLog : public ProgressSink {
   public:
    explicit RemoveLog(fs::path path) : path_(std::move(path)) {}
    void on_evaluation(const EvaluationRecord&) override { fs::remove(path_); }

   private:
    fs::path path_;
  } progress(folder("a") / "log.jsonl");
  EXPECT_THAT(problem_of([&] { (void)run_training(config(), {folder("a"), Resume::No, nullptr, "test"}, progress); }),
              HasSubstr("moved or removed"));
}

// Only the lock: nothing is lost, and nobody else may come in.
TEST_F(RunDamageTest, ALockThatIsRemovedIsTakenAgain) {
  std::unique_ptr<FolderLock> taken;
  const std::string problem = problem_of_start("a", {[&] { fs::remove(folder("a") / ".lock"); },
                                                     [&] { taken = FolderLock::take(folder("a"), "the folder"); }});
  EXPECT_EQ(problem, "no error");
  EXPECT_EQ(taken, nullptr);
}

TEST_F(RunDamageTest, ALockThatAnotherProcessTookEndsTheRun) {
  std::unique_ptr<FolderLock> taken;
  const auto take = [&] {
    fs::remove(folder("a") / ".lock");
    taken = FolderLock::take(folder("a"), "the folder");
  };
  EXPECT_THAT(problem_of_start("a", {take}), HasSubstr("in use by another process"));
  EXPECT_EQ(list_checkpoints(folder("a")).size(), 1U);
}

// A folder deeper than the process may open files stands for one that cannot be removed, whoever the user is.
TEST_F(RunDamageTest, ACheckpointThatCannotBeRemovedWholeIsTold) {
  fs::path deep = folder("a") / "checkpoints" / "step-00000001";
  for (int i = 0; i < 300; ++i) deep /= "d";
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const auto limit_files = [&] {
    fs::create_directories(deep);
    const rlimit limit{std::min<rlim_t>(before.rlim_cur, 200), before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  };
  const std::string problem = problem_of_start("a", {limit_files});
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(problem, "no error");
  EXPECT_THAT(notices("a"), Contains(AllOf(HasSubstr("step-00000001"), HasSubstr("could not be removed"), HasSubstr(".step-00000001.removed"))));
}

TEST_F(RunDamageTest, TheTypeOfACheckpointCountsAndTheLogMustAgree) {
  start_and_stop(automatic(), "a", 4);
  set_logged_type("a", other());
  const std::vector<std::string> lines = log_lines("a");
  EXPECT_THAT(problem_of_resume(automatic(), "a"), AllOf(HasSubstr("log.jsonl"), HasSubstr("state.json"), HasSubstr("'" + other() + "'"),
                                                         HasSubstr("'" + here() + "'")));
  EXPECT_EQ(log_lines("a"), lines);
  set_saved_type("a", other());
  EXPECT_EQ(problem_of_resume(automatic(), "a"), "no error");
  EXPECT_EQ(log("a").start.compute_type, other());
  EXPECT_THAT(notices("a"), Contains(HasSubstr("computes in " + other() + ", as it began")));
}

TEST_F(RunDamageTest, TheTypeOfTheLogCountsWhereTheCheckpointSaysNone) {
  start_and_stop(automatic(), "a", 4);
  set_saved_type("a", "");
  set_logged_type("a", other());
  EXPECT_EQ(problem_of_resume(automatic(), "a"), "no error");
  EXPECT_EQ(log("a").start.compute_type, other());
}

TEST_F(RunDamageTest, ATypeThatDoesNotExistIsRefused) {
  start_and_stop(automatic(), "a", 4);
  set_saved_type("a", "float33");
  set_logged_type("a", "float33");
  EXPECT_THAT(problem_of_resume(automatic(), "a"), AllOf(HasSubstr("log.jsonl"), HasSubstr("state.json"), HasSubstr("float33")));
}

TEST_F(RunDamageTest, DamagedJsonIsToldInPlainWords) {
  start(config(), "a");
  const fs::path checkpoint = list_checkpoints(folder("a")).back();
  const auto problem = [&](const std::string& manifest) {
    write_file_atomically(checkpoint / "manifest.json", manifest);
    return problem_of([&] { (void)verify_checkpoint(checkpoint); });
  };
  const auto is_plain = AllOf(HasSubstr("manifest.json is damaged"), HasSubstr("use an earlier checkpoint"), testing::Not(HasSubstr("json.exception")));
  EXPECT_THAT(problem(""), is_plain);
  EXPECT_THAT(problem("{}"), is_plain);
}

}  // namespace
}  // namespace switchyard
