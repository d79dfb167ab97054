#pragma once
// The run store: one SQLite file beside the run folders, one row a run. Several processes may write at once (WAL, they wait
// for each other). It is an index: everything in it can be read from the run folders too.

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

inline constexpr const char* kRunStoreName = "store.sqlite";

struct RunRow {
  std::string folder;       // of the run, relative to the store's folder; the key
  std::string name;
  std::string arm;
  int64_t seed = 0;
  std::string status;       // "running", "done", "interrupted" or "failed"; a killed run stays "running"
  int64_t step = 0;         // optimizer steps done
  std::string config_json;  // resolved config, an object of "section.key": value
  std::optional<double> loss;            // last held-out loss, nats per token; null before the first evaluation
  std::optional<double> specialization;  // of the last evaluation
  std::optional<double> max_vio;         // global, of the last evaluation
  std::string message;      // why it failed; else empty
  std::string started;      // UTC, ISO 8601
  std::string updated;
};

class RunStore {
 public:
  /// Opens or creates the store. @param patience  how long to wait for other processes, which hold the store for milliseconds
  /// @throws DataError naming the file and SQLite's reason
  explicit RunStore(const std::filesystem::path& path, std::chrono::milliseconds patience = std::chrono::seconds(30));
  ~RunStore();
  RunStore(const RunStore&) = delete;
  RunStore& operator=(const RunStore&) = delete;

  /// Inserts the row, or replaces the one with the same folder, that of a run which is no more.
  void begin(const RunRow& row);
  /// Inserts the row, or replaces the one with the same folder; `started` of an existing row is kept.
  void put(const RunRow& row);
  [[nodiscard]] std::vector<RunRow> rows() const;  // by folder
  /// Little, once somebody held the store longer than that: a run must not wait for them each time.
  [[nodiscard]] std::chrono::milliseconds patience() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Now, "2026-01-31T12:00:00Z".
[[nodiscard]] std::string utc_now();

}  // namespace switchyard
