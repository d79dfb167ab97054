#include "switchyard/testbed/run_folder.hpp"

#include <map>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/train/run_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kShownDigits = 12;  // of a data set's hash, as `data show` and the report have them

// Neither changes what is measured.
bool is_free_to_differ(const std::string& key) { return key == "execution.threads" || key.starts_with("checkpoint."); }

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
  if (!path_exists(folder) || is_abandoned_start(folder)) return FolderState::Missing;
  SWITCHYARD_CHECK(path_exists(folder / "config.toml"), DataError, folder.string(),
                   " has no config.toml, so it is not a run; move it away or choose another --out");
  check_same_config(folder, expected);
  return read_finished_log(folder) ? FolderState::Done : FolderState::Unfinished;
}

void check_same_data(const fs::path& folder, const std::vector<PlannedRun>& runs) {
  struct Seen {
    std::string hash, by;
  };
  std::map<std::string, Seen> seen_at;  // data.path -> manifest
  for (const PlannedRun& run : runs) {
    const std::optional<RunLog> log = read_finished_log(folder / run.name);
    if (!log) continue;
    const std::string& path = run.config.data.path;
    const fs::path manifest = fs::path(path) / "manifest.json";
    if (!seen_at.contains(path)) {
      seen_at[path] = path_exists(manifest) ? Seen{sha256_file(manifest), "is there now"} : Seen{log->start.data_hash, run.name + " saw"};
    }
    const Seen& seen = seen_at[path];
    SWITCHYARD_CHECK(log->start.data_hash == seen.hash, UsageError, (folder / run.name).string(), " ran on another data set: ", path,
                     " was ", log->start.data_hash.substr(0, kShownDigits), ", but what ", seen.by, " is ", seen.hash.substr(0, kShownDigits),
                     ".\nRuns on different data do not compare: put the data back, give the testbed another folder with --out, or "
                     "delete this run's folder to repeat it.");
  }
}

std::optional<RunLog> read_finished_log(const fs::path& folder) {
  std::optional<RunLog> log = find_run_log(folder / "log.jsonl");
  if (!log || !log->end || log->end->reason != "done" || log->evaluations.empty()) return std::nullopt;
  return log;
}

}  // namespace switchyard
