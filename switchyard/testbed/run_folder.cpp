#include "switchyard/testbed/run_folder.hpp"

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/train/run_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

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
  if (!fs::exists(folder) || is_abandoned_start(folder)) return FolderState::Missing;
  SWITCHYARD_CHECK(fs::exists(folder / "config.toml"), DataError, folder.string(),
                   " has no config.toml, so it is not a run; move it away or choose another --out");
  check_same_config(folder, expected);
  return read_finished_log(folder) ? FolderState::Done : FolderState::Unfinished;
}

std::optional<RunLog> read_finished_log(const fs::path& folder) {
  std::optional<RunLog> log = find_run_log(folder / "log.jsonl");
  if (!log || !log->end || log->end->reason != "done" || log->evaluations.empty()) return std::nullopt;
  return log;
}

}  // namespace switchyard
