// The run store: what is put comes back, a second put replaces, two writers wait for each other.

#include "switchyard/train/run_store.hpp"

#include <gtest/gtest.h>
#include <sqlite3.h>

#include <array>
#include <chrono>
#include <thread>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

RunRow make_row(const std::string& folder) {
  RunRow row;
  row.folder = folder;
  row.name = "it's a \"name\"; DROP TABLE runs;--";
  row.arm = "micro_batch";
  row.seed = int64_t{1} << 62;
  row.status = "running";
  row.step = 3;
  row.config_json = "{}";
  row.started = "2026-01-01T00:00:00Z";
  row.updated = row.started;
  return row;
}

TEST(RunStore, KeepsRowsAndReplacesThem) {
  const test::ScratchFolder folder;
  const auto path = folder.path() / kRunStoreName;
  RunRow row = make_row("b");
  {
    RunStore store(path);
    store.put(row);
    store.put(make_row("a"));
    row.status = "done";
    row.loss = 4.5;
    row.max_vio = 0.1;
    row.updated = row.started = "2026-01-02T00:00:00Z";
    store.put(row);
  }
  const auto rows = RunStore(path).rows();
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].folder, "a");
  EXPECT_EQ(rows[0].loss, std::nullopt);
  EXPECT_EQ(rows[1].name, row.name);
  EXPECT_EQ(rows[1].seed, row.seed);
  EXPECT_EQ(rows[1].status, "done");
  EXPECT_EQ(rows[1].loss, 4.5);
  EXPECT_EQ(rows[1].specialization, std::nullopt);
  EXPECT_EQ(rows[1].max_vio, 0.1);
  EXPECT_EQ(rows[1].started, "2026-01-01T00:00:00Z");
  EXPECT_EQ(rows[1].updated, "2026-01-02T00:00:00Z");
}

// The folder of a run that was deleted, taken by another.
TEST(RunStore, ANewRunKeepsNothingOfAnEarlierOne) {
  const test::ScratchFolder folder;
  RunStore store(folder.path() / kRunStoreName);
  RunRow row = make_row("a");
  row.loss = 4.5;
  store.put(row);
  row.loss = std::nullopt;
  row.started = row.updated = "2026-01-02T00:00:00Z";
  store.begin(row);
  store.begin(make_row("b"));
  const auto rows = store.rows();
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].started, "2026-01-02T00:00:00Z");
  EXPECT_EQ(rows[0].loss, std::nullopt);
  EXPECT_EQ(rows[1].folder, "b");
}

TEST(RunStore, TwoWritersLoseNothing) {
  const test::ScratchFolder folder;
  const auto path = folder.path() / kRunStoreName;
  constexpr int kRows = 40;
  const auto write = [&](const std::string& prefix) {
    for (int i = 0; i < kRows; ++i) RunStore(path).put(make_row(prefix + std::to_string(i)));
  };
  std::thread other(write, "x");
  write("y");
  other.join();
  EXPECT_EQ(RunStore(path).rows().size(), 2U * kRows);
}

// Jobs of a testbed begin together, and the store is new.
TEST(RunStore, ManyMayBeTheFirstToOpenIt) {
  for (int round = 0; round < 150; ++round) {
    const test::ScratchFolder folder;
    const auto path = folder.path() / kRunStoreName;
    std::array<std::string, 3> errors;
    std::vector<std::thread> openers;
    for (std::string& error : errors) {
      openers.emplace_back([&path, &error] {
        try {
          RunStore store(path);
        } catch (const Error& caught) {
          error = caught.what();
        }
      });
    }
    for (std::thread& opener : openers) opener.join();
    for (const std::string& error : errors) ASSERT_EQ(error, "") << "round " << round;
  }
}

// Somebody's tool that has the store open for writing, for hours.
TEST(RunStore, WaitsLongOnlyOnceForOneThatHoldsIt) {
  const test::ScratchFolder folder;
  const auto path = folder.path() / kRunStoreName;
  RunStore store(path, std::chrono::milliseconds(300));
  store.put(make_row("a"));
  EXPECT_EQ(store.patience(), std::chrono::milliseconds(300));
  sqlite3* holder = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &holder), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(holder, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_THROW(store.put(make_row("b")), DataError);
  EXPECT_EQ(store.patience(), std::chrono::milliseconds(100));
  EXPECT_THROW(store.put(make_row("b")), DataError);
  EXPECT_EQ(store.patience(), std::chrono::milliseconds(100));
  ASSERT_EQ(sqlite3_exec(holder, "ROLLBACK", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(holder);
  store.put(make_row("b"));
  EXPECT_EQ(store.rows().size(), 2U);
}

TEST(RunStore, NamesAFileThatIsNoStore) {
  const test::ScratchFolder folder;
  write_file_atomically(folder.path() / kRunStoreName, std::string(4096, 'x'));
  EXPECT_THROW(RunStore(folder.path() / kRunStoreName), DataError);
  EXPECT_THROW(RunStore(folder.path() / "missing" / "store.sqlite"), DataError);
}

}  // namespace
}  // namespace switchyard
