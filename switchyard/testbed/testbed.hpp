#pragma once
// A whole testbed: lock its folder, run what is missing, judge the claims, leave testbed.json.

#include <vector>

#include "switchyard/testbed/config.hpp"
#include "switchyard/testbed/runner.hpp"
#include "switchyard/testbed/study.hpp"

namespace switchyard {

struct TestbedResult {
  std::vector<RunProgress> runs;
  Study study;

  [[nodiscard]] bool all_done() const;  // every run has its result
};

/// testbed.json and testbed.toml (the resolved configuration) are written before the first run and again at the end, so
/// that a report can be made at any time.
/// @throws UsageError when another process works on the folder; errors of check_needs() and Runner, which start nothing
[[nodiscard]] TestbedResult run_testbed(const TestbedConfig& config, const RunnerOptions& options, TestbedSink& sink);

}  // namespace switchyard
