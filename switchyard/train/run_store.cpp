#include "switchyard/train/run_store.hpp"

#include <sqlite3.h>

#include <array>
#include <chrono>
#include <ctime>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int kBusyMilliseconds = 30'000;  // another process holds the lock for milliseconds

constexpr const char* kCreate = R"(
CREATE TABLE IF NOT EXISTS runs(
  folder TEXT PRIMARY KEY, name TEXT NOT NULL, arm TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT NOT NULL,
  step INTEGER NOT NULL, config TEXT NOT NULL, loss REAL, specialization REAL, max_vio REAL, message TEXT NOT NULL,
  started TEXT NOT NULL, updated TEXT NOT NULL))";

constexpr const char* kPut = R"(
INSERT INTO runs(folder, name, arm, seed, status, step, config, loss, specialization, max_vio, message, started, updated)
VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
ON CONFLICT(folder) DO UPDATE SET name = ?2, arm = ?3, seed = ?4, status = ?5, step = ?6, config = ?7, loss = ?8,
  specialization = ?9, max_vio = ?10, message = ?11, updated = ?13)";

constexpr const char* kBegin = ", started = ?12";  // behind kPut: a new run keeps nothing of the row

constexpr const char* kSelect = R"(
SELECT folder, name, arm, seed, status, step, config, loss, specialization, max_vio, message, started, updated
FROM runs ORDER BY folder)";

class Statement {
 public:
  Statement(sqlite3* database, const std::string& path, const char* text) : database_(database), path_(path) {
    check(sqlite3_prepare_v2(database, text, -1, &statement_, nullptr));
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  void bind(int index, const std::string& value) {
    check(sqlite3_bind_text(statement_, index, value.data(), static_cast<int>(value.size()), SQLITE_TRANSIENT));
  }
  void bind(int index, int64_t value) { check(sqlite3_bind_int64(statement_, index, value)); }
  void bind(int index, std::optional<double> value) {
    check(value ? sqlite3_bind_double(statement_, index, *value) : sqlite3_bind_null(statement_, index));
  }
  /// True while there is a row.
  bool next() {
    const int result = sqlite3_step(statement_);
    if (result != SQLITE_ROW && result != SQLITE_DONE) check(result);
    return result == SQLITE_ROW;
  }
  [[nodiscard]] std::string text(int column) const {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    return bytes == nullptr ? std::string() : std::string(bytes);
  }
  [[nodiscard]] int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  [[nodiscard]] std::optional<double> number(int column) const {
    if (sqlite3_column_type(statement_, column) == SQLITE_NULL) return std::nullopt;
    return sqlite3_column_double(statement_, column);
  }

 private:
  void check(int result) const {
    SWITCHYARD_CHECK(result == SQLITE_OK, DataError, "run store ", path_, ": ", sqlite3_errmsg(database_));
  }
  sqlite3* database_;
  const std::string& path_;
  sqlite3_stmt* statement_ = nullptr;
};

// SQLite does not wait, whatever its time-out, for another process that makes a new file write ahead at the same moment.
void write_ahead(sqlite3* database, const std::string& path) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kBusyMilliseconds);
  while (true) {
    const int result = sqlite3_exec(database, "PRAGMA journal_mode = WAL", nullptr, nullptr, nullptr);
    if (result == SQLITE_OK) return;
    SWITCHYARD_CHECK(result == SQLITE_BUSY && std::chrono::steady_clock::now() < end, DataError, "run store ", path, ": ",
                     sqlite3_errmsg(database));
    sqlite3_sleep(/*ms=*/5);
  }
}

}  // namespace

struct RunStore::Impl {
  sqlite3* database = nullptr;
  std::string path;

  ~Impl() { sqlite3_close(database); }
  void run(const char* text) const {
    Statement statement(database, path, text);
    while (statement.next()) {
    }
  }
  void write(const std::string& text, const RunRow& row) const;
};

RunStore::RunStore(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  impl_->path = path.string();
  const int result = sqlite3_open(impl_->path.c_str(), &impl_->database);
  SWITCHYARD_CHECK(result == SQLITE_OK, DataError, "cannot open the run store ", impl_->path, ": ",
                   impl_->database != nullptr ? sqlite3_errmsg(impl_->database) : sqlite3_errstr(result));
  sqlite3_busy_timeout(impl_->database, kBusyMilliseconds);
  write_ahead(impl_->database, impl_->path);
  impl_->run(kCreate);
}

RunStore::~RunStore() = default;

void RunStore::begin(const RunRow& row) { impl_->write(std::string(kPut) + kBegin, row); }

void RunStore::put(const RunRow& row) { impl_->write(kPut, row); }

void RunStore::Impl::write(const std::string& text, const RunRow& row) const {
  Statement statement(database, path, text.c_str());
  statement.bind(1, row.folder);
  statement.bind(2, row.name);
  statement.bind(3, row.arm);
  statement.bind(4, row.seed);
  statement.bind(5, row.status);
  statement.bind(6, row.step);
  statement.bind(7, row.config_json);
  statement.bind(8, row.loss);
  statement.bind(9, row.specialization);
  statement.bind(10, row.max_vio);
  statement.bind(11, row.message);
  statement.bind(12, row.started);
  statement.bind(13, row.updated);
  statement.next();
}

std::vector<RunRow> RunStore::rows() const {
  Statement statement(impl_->database, impl_->path, kSelect);
  std::vector<RunRow> result;
  while (statement.next()) {
    RunRow& row = result.emplace_back();
    row.folder = statement.text(0);
    row.name = statement.text(1);
    row.arm = statement.text(2);
    row.seed = statement.integer(3);
    row.status = statement.text(4);
    row.step = statement.integer(5);
    row.config_json = statement.text(6);
    row.loss = statement.number(7);
    row.specialization = statement.number(8);
    row.max_vio = statement.number(9);
    row.message = statement.text(10);
    row.started = statement.text(11);
    row.updated = statement.text(12);
  }
  return result;
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

}  // namespace switchyard
