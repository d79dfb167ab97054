#pragma once
// The testbed's words on the screen. Pure functions.

#include <string>
#include <vector>

#include "switchyard/cli/terminal.hpp"
#include "switchyard/testbed/config.hpp"
#include "switchyard/testbed/runner.hpp"
#include "switchyard/testbed/study.hpp"

namespace switchyard {

/// What is about to be run, and where.
[[nodiscard]] std::string testbed_header_text(const TestbedConfig& config, const RunnerOptions& options);

/// One line about a run that has just changed its status.
[[nodiscard]] std::string run_event_text(const RunProgress& run, Screen screen);

/// On a terminal one line for each running run and one for all; elsewhere a single line.
[[nodiscard]] std::string progress_text(const std::vector<RunProgress>& runs, Screen screen);

/// Summary table, claims, notes.
[[nodiscard]] std::string study_text(const Study& study, Screen screen);

}  // namespace switchyard
