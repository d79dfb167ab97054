// Runs whose folder or store something has happened to.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/run_store.hpp"
#include "tests/train/run_fixture.hpp"

namespace switchyard {
namespace {

// For any user, root too: a file's rights say nothing to root.
void set_read_only(const fs::path& store) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(store.c_str(), &database), SQLITE_OK);
  for (const std::string event : {"INSERT", "UPDATE"}) {
    const std::string text = "CREATE TRIGGER no_" + event + " BEFORE " + event + " ON runs BEGIN SELECT RAISE(ABORT, 'read only'); END";
    EXPECT_EQ(sqlite3_exec(database, text.c_str(), nullptr, nullptr, nullptr), SQLITE_OK);
  }
  sqlite3_close(database);
  fs::permissions(store, fs::perms::owner_read);
}

TEST_F(RunTest, StartsWhereAKilledProcessLeftNoWholeFile) {
  const RunConfig run = config();
  start(run, "whole");
  fs::create_directories(folder("a"));
  for (const char* name : {".lock", ".config.toml.part-77"}) std::ofstream(folder("a") / name) << "half";
  start(run, "a");
  expect_same_run("whole", "a");
  EXPECT_FALSE(fs::exists(folder("a") / ".config.toml.part-77"));
  fs::create_directories(folder("b"));
  std::ofstream(folder("b") / "thesis.txt") << "mine";
  EXPECT_THROW(start(run, "b"), UsageError);
}

// Killed before the start record, or the log lost in a power cut: `auto` goes on in the type of the checkpoint.
TEST_F(RunTest, ResumesWithoutTheStartOfItsLog) {
  RunConfig run = config();
  run.execution.dtype = ComputeType::Auto;
  for (const std::string name : {"a", "b"}) {
    start_and_stop(run, name, 4);
    EXPECT_EQ(verify_checkpoint(list_checkpoints(folder(name)).back()).compute_type, log(name).start.compute_type);
    std::ofstream(folder(name) / "log.jsonl") << (name == "a" ? "" : R"({"kind":"start","schema":1,"na)");
    resume(run, name);
    EXPECT_EQ(log(name).steps.front().step, 5);
    EXPECT_EQ(log(name).steps.back().step, 6);
  }
}

// A run of `auto` that began on a processor of the other kind.
TEST_F(RunTest, AutoGoesOnInTheTypeOfTheCheckpointWithoutALog) {
  RunConfig run = config();
  run.execution.dtype = ComputeType::Auto;
  start_and_stop(run, "a", 4);
  const bool half = log("a").start.compute_type == "bfloat16";
  const std::string here = half ? R"( "bfloat16")" : R"( "float32")", other = half ? R"( "float32" )" : R"("bfloat16")";
  const fs::path checkpoint = list_checkpoints(folder("a")).back();
  const auto replace = [](const fs::path& file, const std::string& from, const std::string& to) {
    std::string text = read_file(file);
    ASSERT_NE(text.find(from), std::string::npos) << file;
    std::ofstream(file, std::ios::binary) << text.replace(text.find(from), from.size(), to);
  };
  const std::string hash = sha256_file(checkpoint / "state.json");
  replace(checkpoint / "state.json", here, other);
  replace(checkpoint / "manifest.json", hash, sha256_file(checkpoint / "state.json"));
  fs::remove(folder("a") / "log.jsonl");
  resume(run, "a");
  EXPECT_EQ(log("a").start.compute_type, half ? "float32" : "bfloat16");
}

TEST_F(RunTest, ANewRunInTheFolderOfADeletedOneBeginsInTheStoreToo) {
  const RunConfig run = config();
  const auto set_started = [&] {  // as if long ago
    RunStore store(folder("a").parent_path() / kRunStoreName);
    RunRow row = store.rows().at(0);
    row.started = "2001-01-01T00:00:00Z";
    store.begin(row);
  };
  const auto started = [&] { return RunStore(folder("a").parent_path() / kRunStoreName).rows().at(0).started; };
  start_and_stop(run, "a", 4);
  set_started();
  resume(run, "a");
  EXPECT_EQ(started(), "2001-01-01T00:00:00Z");
  fs::remove_all(folder("a"));
  start(run, "a");
  EXPECT_NE(started(), "2001-01-01T00:00:00Z");
}

// The store is an index only: what cannot be opened or written is told, whatever is the matter with it.
TEST_F(RunTest, AStoreThatCannotBeUsedDoesNotKeepARunFromStarting) {
  const fs::path store = folder("a").parent_path() / kRunStoreName;
  const auto runs_on = [&](const std::string& name) {
    EXPECT_EQ(start(config(), name).reason, EndReason::Done) << name;
    EXPECT_EQ(store_notices(name), 1) << name;
  };
  fs::create_directories(store.parent_path());
  std::ofstream(store) << "junk, and enough of it not to be taken for a new database: " << std::string(4096, 'x');
  runs_on("a");
  start_and_stop(config(), "b", 4);
  resume(config(), "b");
  EXPECT_EQ(store_notices("b"), 2) << "one a process";
  EXPECT_EQ(read_file(store).substr(0, 4), "junk");
  fs::remove(store);
  fs::create_directory(store);
  runs_on("c");
  fs::remove(store);
  start(config(), "d");
  EXPECT_EQ(store_notices("d"), 0);
  ASSERT_EQ(RunStore(store).rows().size(), 1U);
  set_read_only(store);
  runs_on("e");
}

// The store is an index only. Somebody empties it while the run is under way.
TEST_F(RunTest, AStoreThatFailsDoesNotEndARun) {
  class Emptier : public ProgressSink {
   public:
    explicit Emptier(fs::path store) : store_(std::move(store)) {}
    void on_step(const StepRecord& record) override {
      if (record.step != 1) return;
      sqlite3* database = nullptr;
      ASSERT_EQ(sqlite3_open(store_.c_str(), &database), SQLITE_OK);
      EXPECT_EQ(sqlite3_exec(database, "DROP TABLE runs", nullptr, nullptr, nullptr), SQLITE_OK);
      sqlite3_close(database);
    }

   private:
    fs::path store_;
  } progress(folder("a").parent_path() / kRunStoreName);
  EXPECT_EQ(run_training(config(), {folder("a"), Resume::No, nullptr, "test"}, progress).reason, EndReason::Done);
  EXPECT_EQ(store_notices("a"), 1);
}

}  // namespace
}  // namespace switchyard
