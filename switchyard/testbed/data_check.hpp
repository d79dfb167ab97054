#pragma once
// What the runs of a testbed need, memory and data sets, before anything starts.

#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/testbed/config.hpp"

namespace switchyard {

/// What every run that is not finished in `folder` would ask of this machine's memory and of its data set. Finished ones need none.
/// @throws ConfigError, DataError, UsageError: what the first of them would throw, naming the run where its own configuration is the reason
void check_needs(const std::filesystem::path& folder, const std::vector<PlannedRun>& runs);

/// What few held-out documents do to S, each statement once. Data sets that are no longer there say nothing.
[[nodiscard]] std::vector<std::string> document_notes(const std::vector<PlannedRun>& runs);

}  // namespace switchyard
