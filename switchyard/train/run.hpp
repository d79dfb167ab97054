#pragma once
// One training run, from configuration to a run folder.

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/profile.hpp"
#include "switchyard/train/run_config.hpp"
#include "switchyard/train/run_folder.hpp"

namespace switchyard {

/// Told what happens, in order; does nothing unless overridden. The library itself never prints.
class ProgressSink {
 public:
  virtual ~ProgressSink() = default;
  virtual void on_start(const StartRecord&) {}
  virtual void on_step(const StepRecord&) {}
  virtual void on_evaluation(const EvaluationRecord&) {}
  virtual void on_notice(const NoticeRecord&) {}
  virtual void on_checkpoint(const std::filesystem::path&) {}
  virtual void on_profile(const ProfileReport&, const std::filesystem::path& /*folder*/) {}
};

struct RunOptions {
  std::filesystem::path folder;  // of the run
  Resume resume = Resume::No;
  /// Set (by a signal handler) to end early: the step under way is finished, a checkpoint written. Null: never.
  const std::atomic<bool>* stop = nullptr;
  std::string command;           // as typed, for the log
  /// Steps of the first rank to record, from the third that this process does; 0: none. Into profile/ of the run folder.
  int64_t profile_steps = 0;
  /// Ranks that train together; null: this process alone. Each gives the same configuration and runs on the same data set.
  Communicator* comm = nullptr;
};

enum class EndReason { Done, Interrupted };

struct RunResult {
  EndReason reason = EndReason::Done;
  int64_t step = 0;  // optimizer steps done
  std::optional<StepRecord> last_step;          // of this process
  std::optional<EvaluationRecord> evaluation;   // the last of the run; first rank only
};

/// Trains from the beginning, or under Resume::Yes from the newest whole checkpoint (from step 0 where the run was killed
/// before its first), to `config.steps`. Sets the number of threads of ATen for the process. The same configuration, data set
/// and number of threads give the same bits, however often the run was interrupted.
/// With ranks it is collective: `data.micro_batches` is that of the step over all ranks and a multiple of their number; each takes
/// its share (share_of_rank()), so that loss and weights are those of one process up to rounding. Only the first rank writes and
/// calls `progress`; a stop that any rank is asked for stops all after the same step.
/// Side effects: the run folder, and a row in store.sqlite beside it.
/// @throws ConfigError, UsageError (also when fewer steps are left than are to be profiled), DataError, StateError; CommError when
///         another rank failed or cannot be reached. The last checkpoint stays usable.
RunResult run_training(const RunConfig& config, const RunOptions& options, ProgressSink& progress);

}  // namespace switchyard
