#include "switchyard/testbed/run_folder.hpp"

#include <algorithm>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Neither changes what is measured.
bool is_free_to_differ(const std::string& key) { return key == "execution.threads" || key.starts_with("checkpoint."); }

// A process that was killed before its first file left a folder with a lock in it.
bool is_abandoned_start(const fs::path& folder) {
  return std::all_of(fs::directory_iterator(folder), fs::directory_iterator(),
                     [](const fs::directory_entry& entry) { return entry.path().filename() == ".lock"; });
}

void check_same_config(const fs::path& folder, const RunConfig& expected) {
  RunConfig found;
  read_config(parse_config_file(folder / "config.toml"), found);
  std::string changes;
  for (const ConfigDifference& difference : compare(found, expected)) {
    if (is_free_to_differ(difference.key)) continue;
    changes += join_text("\n  ", difference.key, ": ran with ", difference.before, ", now asked for ", difference.after);
  }
  SWITCHYARD_CHECK(changes.empty(), UsageError, folder.string(), " holds a run with another configuration:", changes,
                   "\nGive the changed testbed another folder with --out, or delete this run's folder to repeat it.");
}

}  // namespace

FolderState inspect_run_folder(const fs::path& folder, const RunConfig& expected) {
  if (!fs::exists(folder) || (fs::is_directory(folder) && is_abandoned_start(folder))) return FolderState::Missing;
  SWITCHYARD_CHECK(fs::exists(folder / "config.toml"), DataError, folder.string(),
                   " has no config.toml, so it is not a run; move it away or choose another --out");
  check_same_config(folder, expected);
  return read_finished_log(folder) ? FolderState::Done : FolderState::Unfinished;
}

std::optional<RunLog> read_finished_log(const fs::path& folder) {
  const fs::path path = folder / "log.jsonl";
  if (!fs::exists(path) || fs::file_size(path) == 0) return std::nullopt;
  RunLog log = read_run_log(path);
  if (!log.end || log.end->reason != "done" || log.evaluations.empty()) return std::nullopt;
  return log;
}

}  // namespace switchyard
