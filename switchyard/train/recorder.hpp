#pragma once
// Everything that is told about a run, told in one place: run log, TensorBoard events, run store, progress.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/event_file.hpp"
#include "switchyard/train/run.hpp"
#include "switchyard/train/run_folder.hpp"
#include "switchyard/train/run_store.hpp"

namespace switchyard {

class RunRecorder {
 public:
  /// Enters the run into the store as running; a new one takes the place of an earlier run of that folder. Nothing is written to the
  /// log before start().
  RunRecorder(const RunFolder& folder, const RunConfig& config, Resume resume, ProgressSink& progress);

  /// Opens log and events; lines of steps after `steps_done` are cut off the log, and what had to be mended in it is told.
  void start(const StartRecord& record, int64_t steps_done);
  void step(const StepRecord& record);
  void evaluation(const EvaluationRecord& record);
  void notice(int64_t step, const std::string& text);
  /// Returns when the log is on the disk: a checkpoint must not outlive the lines of its steps.
  void before_checkpoint() { log_->sync(); }
  /// @throws DataError where nobody would find the log
  void checkpoint(const std::filesystem::path& path, int64_t step);
  void profile(const ProfileReport& report, const std::filesystem::path& folder) { progress_.on_profile(report, folder); }
  /// @throws DataError where nobody would find the log
  void end(const EndRecord& record);
  /// Marks the run as failed in the store; never throws, because an error is under way.
  void failed(const std::string& message) noexcept;

  /// The last evaluation in the log, also of an earlier process.
  [[nodiscard]] const std::optional<EvaluationRecord>& last_evaluation() const { return last_evaluation_; }

 private:
  /// The store is an index of what the folders hold: one that fails is a notice, kept until the log is open.
  void write_row(const std::function<void(RunStore&)>& write);
  void put_row(const std::string& status);
  void tell_of_store();

  const RunFolder& folder_;
  ProgressSink& progress_;
  std::optional<RunStore> store_;  // none where it cannot be opened
  RunRow row_;
  std::optional<RunLogWriter> log_;
  std::optional<EventFileWriter> events_;
  std::optional<EvaluationRecord> last_evaluation_;
  std::string store_problem_;  // the first
  bool store_told_ = false;
};

}  // namespace switchyard
