#pragma once
// What lies in the folder of a planned run.

#include <filesystem>
#include <optional>
#include <vector>

#include "switchyard/measure/run_log.hpp"
#include "switchyard/testbed/config.hpp"

namespace switchyard {

enum class FolderState {
  Missing,     // nothing there, or an abandoned start
  Unfinished,  // to be resumed, if only from step 0
  Done,        // has its last step and evaluation
};

/// @throws UsageError when the folder holds a run with another configuration: names the keys, both values, what to do.
///   execution.threads and checkpoint.* may differ; a resumed run keeps its own.
/// @throws DataError when the folder holds something else, or a damaged log
[[nodiscard]] FolderState inspect_run_folder(const std::filesystem::path& folder, const RunConfig& expected);

/// All finished runs of a testbed saw the same data: what lies at their data.path now or, where nothing does any more, what the
/// first of them saw. Unfinished ones are not looked at: resuming them does.
/// @throws UsageError naming the run and what to do; DataError
void check_same_data(const std::filesystem::path& folder, const std::vector<PlannedRun>& runs);

/// The log of a finished run; none otherwise. @throws DataError
[[nodiscard]] std::optional<RunLog> read_finished_log(const std::filesystem::path& folder);

}  // namespace switchyard
