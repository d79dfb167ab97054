#include "switchyard/testbed/testbed.hpp"

#include <algorithm>
#include <filesystem>
#include <memory>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/folder_lock.hpp"
#include "switchyard/testbed/data_check.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

Study write_study(const TestbedConfig& config, const std::vector<PlannedRun>& runs, const fs::path& folder,
                  const std::vector<std::string>& notes) {
  Study study = make_study(config, runs, read_results(folder, runs));
  study.notes.insert(study.notes.end(), notes.begin(), notes.end());
  write_file_atomically(folder / "testbed.json", study_json(config, study));
  return study;
}

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot create ", folder.string(), ": ", error.message());
}

}  // namespace

bool TestbedResult::all_done() const {
  return std::all_of(runs.begin(), runs.end(), [](const RunProgress& run) {
    return run.status == RunStatus::Done || run.status == RunStatus::Skipped;
  });
}

TestbedResult run_testbed(const TestbedConfig& config, const RunnerOptions& options, TestbedSink& sink) {
  const std::vector<PlannedRun> runs = expand(config);
  check_needs(options.folder, runs);  // first: every run would fail, and a wrong working folder should get no folder of runs
  create_folder(options.folder);
  const std::unique_ptr<FolderLock> lock = FolderLock::take(options.folder, options.folder.string());
  SWITCHYARD_CHECK(lock != nullptr, UsageError, "another testbed works in ", options.folder.string(),
                   "; wait for it or choose another --out");
  // Everything that can be refused is refused before a file of an earlier attempt is touched.
  Runner runner(runs, options, sink);
  write_file_atomically(options.folder / "testbed.toml", to_toml(config));
  const std::vector<std::string> notes = document_notes(runs);
  write_study(config, runs, options.folder, notes);
  TestbedResult result;
  result.runs = runner.run();
  result.study = write_study(config, runs, options.folder, notes);
  return result;
}

}  // namespace switchyard
