#pragma once
// Carries out the runs of a testbed as child processes, several at a time, and takes up where an earlier attempt stopped.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "switchyard/testbed/config.hpp"

namespace switchyard {

/// How many runs go side by side and with how many threads each. Small models do not use a second core well, so runs come
/// before threads.
struct ProcessPlan {
  int64_t jobs = 1;
  int64_t threads = 1;  // of each run
};
/// @param asked_jobs  0: as many as there are cores
[[nodiscard]] ProcessPlan plan_processes(int64_t cores, int64_t num_runs, int64_t asked_jobs);

enum class RunStatus { Waiting, Running, Done, Skipped, Failed, Interrupted };

struct RunProgress {
  std::string name;
  RunStatus status = RunStatus::Waiting;
  int64_t step = 0;
  int64_t first_step = 0;          // the first that its process told of: not 1 in a resumed run; 0 before
  int64_t total_steps = 0;
  double loss = 0.0;               // training, of the newest step; 0 before the first
  double tokens_per_second = 0.0;
  double seconds = 0.0;            // since its process started
  std::string error;               // Failed: exit code and the end of its standard error
};

/// Told about every change. Called from the thread of Runner::run.
class TestbedSink {
 public:
  virtual ~TestbedSink() = default;
  /// @param changed  index of the run that has a new status; -1 when only steps advanced
  virtual void update(const std::vector<RunProgress>& runs, int64_t changed) = 0;
};

struct RunnerOptions {
  std::filesystem::path folder;        // of the testbed; runs lie in it by name
  std::vector<std::string> command;    // program and verb: {"/usr/bin/switchyard", "train"}
  int64_t cores = 1;                   // that all runs together may use
  int64_t jobs = 0;                    // 0: as many as there are cores
  const std::atomic<bool>* stop = nullptr;  // when set, children get SIGUSR1 and are waited for
};

/// Finished runs are skipped, unfinished ones resumed, the rest started; a run that fails leaves the others alone.
/// A child is called as `command... CONFIG --out FOLDER --json` or `command... --resume FOLDER --json` and writes one JSON
/// object a line: {"kind": "step", "step": 3, "total_steps": 300, "loss": 8.1, "tokens_per_second": 9000}; lines of other
/// kinds are passed over. At SIGUSR1, which it also gets when this process dies, it saves and ends.
class Runner {
 public:
  /// Looks at all folders, starts and changes nothing. Arguments must outlive the runner.
  /// @throws UsageError when a folder holds a run with another configuration
  Runner(const std::vector<PlannedRun>& runs, const RunnerOptions& options, TestbedSink& sink);
  ~Runner();
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  /// @return the final state, one for each planned run
  [[nodiscard]] std::vector<RunProgress> run();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
