#include "switchyard/train/run_store.hpp"

#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kLittlePatience(100);

constexpr const char* kCreate = R"(
CREATE TABLE IF NOT EXISTS runs(
  folder TEXT PRIMARY KEY, name TEXT NOT NULL, arm TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT NOT NULL,
  step INTEGER NOT NULL, config TEXT NOT NULL, loss REAL, specialization REAL, max_vio REAL, message TEXT NOT NULL,
  started TEXT NOT NULL, updated TEXT NOT NULL))";

/// The columns, for every statement but that which makes the table. `Row` is const when writing.
template <typename Row, typename Visitor>
void visit_columns(Row& row, const Visitor& visit) {
  visit("folder", row.folder);
  visit("name", row.name);
  visit("arm", row.arm);
  visit("seed", row.seed);
  visit("status", row.status);
  visit("step", row.step);
  visit("config", row.config_json);
  visit("loss", row.loss);
  visit("specialization", row.specialization);
  visit("max_vio", row.max_vio);
  visit("message", row.message);
  visit("started", row.started);
  visit("updated", row.updated);
}

std::vector<std::string> column_names() {
  const RunRow row;
  std::vector<std::string> names;
  visit_columns(row, [&](const char* name, const auto&) { names.emplace_back(name); });
  return names;
}

enum class Started { Kept, Replaced };  // of a row that is there already

std::string put_text(Started started) {
  const std::vector<std::string> names = column_names();
  const std::vector<std::string> values(names.size(), "?");
  std::vector<std::string> changes;
  for (const std::string& name : names) {
    const bool stays = name == "folder" || (name == "started" && started == Started::Kept);
    if (!stays) changes.push_back(name + " = excluded." + name);
  }
  return join_text("INSERT INTO runs(", comma_list(names), ") VALUES(", comma_list(values),
                   ") ON CONFLICT(folder) DO UPDATE SET ", comma_list(changes));
}

std::string select_text() { return join_text("SELECT ", comma_list(column_names()), " FROM runs ORDER BY folder"); }

class Statement {
 public:
  Statement(sqlite3* database, const std::string& path, const std::string& text) : database_(database), path_(path) {
    check(sqlite3_prepare_v2(database, text.c_str(), -1, &statement_, nullptr));
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
  void read(int column, std::string& value) const {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
    value = bytes == nullptr ? "" : bytes;
  }
  void read(int column, int64_t& value) const { value = sqlite3_column_int64(statement_, column); }
  void read(int column, std::optional<double>& value) const {
    if (sqlite3_column_type(statement_, column) != SQLITE_NULL) value = sqlite3_column_double(statement_, column);
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
void write_ahead(sqlite3* database, const std::string& path, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
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
  std::chrono::milliseconds patience{};

  ~Impl() { sqlite3_close(database); }
  void run(const char* text) const {
    Statement statement(database, path, text);
    while (statement.next()) {
    }
  }
  void wait_at_most(std::chrono::milliseconds time) {
    patience = time;
    sqlite3_busy_timeout(database, static_cast<int>(time.count()));
  }
  void write(const std::string& text, const RunRow& row);
};

RunStore::RunStore(const std::filesystem::path& path, std::chrono::milliseconds patience) : impl_(std::make_unique<Impl>()) {
  impl_->path = path.string();
  const int result = sqlite3_open(impl_->path.c_str(), &impl_->database);
  SWITCHYARD_CHECK(result == SQLITE_OK, DataError, "cannot open the run store ", impl_->path, ": ",
                   impl_->database != nullptr ? sqlite3_errmsg(impl_->database) : sqlite3_errstr(result));
  impl_->wait_at_most(patience);
  write_ahead(impl_->database, impl_->path, patience);
  impl_->run(kCreate);
}

RunStore::~RunStore() = default;

void RunStore::begin(const RunRow& row) { impl_->write(put_text(Started::Replaced), row); }

void RunStore::put(const RunRow& row) { impl_->write(put_text(Started::Kept), row); }

void RunStore::Impl::write(const std::string& text, const RunRow& row) {
  try {
    Statement statement(database, path, text);
    int parameter = 0;  // SQLite counts parameters from 1, columns from 0
    visit_columns(row, [&](const char*, const auto& value) { statement.bind(++parameter, value); });
    statement.next();
  } catch (const DataError&) {
    if (sqlite3_errcode(database) == SQLITE_BUSY) wait_at_most(std::min(patience, kLittlePatience));
    throw;
  }
}

std::chrono::milliseconds RunStore::patience() const { return impl_->patience; }

std::vector<RunRow> RunStore::rows() const {
  Statement statement(impl_->database, impl_->path, select_text());
  std::vector<RunRow> result;
  while (statement.next()) {
    int column = 0;
    visit_columns(result.emplace_back(), [&](const char*, auto& value) { statement.read(column++, value); });
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
