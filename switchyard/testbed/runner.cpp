#include "switchyard/testbed/runner.hpp"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <memory>

#include <nlohmann/json.hpp>

#include "switchyard/core/child_process.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/testbed/run_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPollInterval{200};
// Not SIGTERM: who ends a service sends that to the runs as well, and they would take ours for a second, urgent wish.
constexpr int kSaveAndEnd = SIGUSR1;

struct ActiveRun {
  size_t index = 0;
  std::unique_ptr<ChildProcess> child;
  Clock::time_point started;
};

bool is_stopped(const RunnerOptions& options) { return options.stop != nullptr && options.stop->load(); }

// A line that is no progress record is not ours to judge.
void read_progress(const std::string& line, RunProgress& progress) {
  const nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
  if (!record.is_object() || !record.contains("kind")) return;
  const auto number = [&](const char* key) {
    return record.contains(key) && record[key].is_number() ? record[key].get<double>() : 0.0;
  };
  const bool is_step = record["kind"] == "step";
  if (is_step || record["kind"] == "end") progress.step = static_cast<int64_t>(number("step"));  // the last step may have no line
  if (!is_step) return;
  if (progress.first_step == 0) progress.first_step = progress.step;
  progress.loss = number("loss");
  progress.tokens_per_second = number("tokens_per_second");
}

std::string failure_text(int exit_code, const std::string& error_tail) {
  std::string text = exit_code > 128 ? join_text("ended by signal ", exit_code - 128) : join_text("exit code ", exit_code);
  if (!error_tail.empty()) text += "\n" + error_tail.substr(0, error_tail.find_last_not_of('\n') + 1);
  return text;
}

}  // namespace

class Runner::Impl {
 public:
  Impl(const std::vector<PlannedRun>& runs, const RunnerOptions& options, TestbedSink& sink)
      : runs_(runs), options_(options), sink_(sink) {
    // All folders are looked at before the first start: a wrong one should not be found hours later.
    for (const PlannedRun& run : runs) {
      const FolderState state = inspect_run_folder(options.folder / run.name, run.config);
      RunProgress progress;
      progress.name = run.name;
      progress.total_steps = run.config.steps;
      if (state == FolderState::Done) {
        progress.status = RunStatus::Skipped;
        progress.step = run.config.steps;
      }
      states_.push_back(state);
      progress_.push_back(std::move(progress));
    }
    check_same_data(options.folder, runs);
  }

  std::vector<RunProgress> run() {
    // As for all runs, not for those that are left: the number of threads is part of what a run computes.
    const ProcessPlan plan = plan_processes(options_.cores, static_cast<int64_t>(runs_.size()), options_.jobs);
    bool told_to_stop = false;
    sink_.update(progress_, -1);
    while (true) {
      if (is_stopped(options_) && !told_to_stop) {
        for (ActiveRun& active : active_) active.child->signal(kSaveAndEnd);
        told_to_stop = true;
      }
      while (!is_stopped(options_) && static_cast<int64_t>(active_.size()) < plan.jobs && start_next(plan)) {
      }
      if (active_.empty()) break;
      std::vector<ChildProcess*> children;
      for (const ActiveRun& active : active_) children.push_back(active.child.get());
      wait_for_any(children, kPollInterval);
      collect();
    }
    return progress_;
  }

  bool start_next(const ProcessPlan& plan) {
    for (size_t index = 0; index < runs_.size(); ++index) {
      if (progress_[index].status != RunStatus::Waiting) continue;
      try {
        active_.push_back({index, start(index, plan), Clock::now()});
        change(index, RunStatus::Running);
      } catch (const Error& error) {
        progress_[index].error = error.what();
        change(index, RunStatus::Failed);
      }
      return true;
    }
    return false;
  }

  std::unique_ptr<ChildProcess> start(size_t index, const ProcessPlan& plan) {
    const fs::path folder = options_.folder / runs_[index].name;
    check_still_as_planned(index);
    ChildCommand command{.arguments = options_.command,
                         .environment = {{"OMP_NUM_THREADS", std::to_string(plan.threads)}},
                         .orphaned = kSaveAndEnd};
    if (states_[index] == FolderState::Unfinished) {
      command.arguments.insert(command.arguments.end(), {"--resume", folder.string(), "--json"});
    } else {
      RunConfig config = runs_[index].config;
      if (config.execution.threads == 0) config.execution.threads = plan.threads;
      const fs::path path = options_.folder / "configs" / (runs_[index].name + ".toml");
      std::error_code error;
      fs::create_directories(path.parent_path(), error);
      SWITCHYARD_CHECK(!error, DataError, "cannot create folder ", path.parent_path().string(), ": ", error.message());
      write_file_atomically(path, to_toml(config));
      command.arguments.insert(command.arguments.end(), {path.string(), "--out", folder.string(), "--json"});
    }
    return std::make_unique<ChildProcess>(command);
  }

  // Runs wait for hours; somebody else may have worked in the folder since.
  void check_still_as_planned(size_t index) const {
    const fs::path folder = options_.folder / runs_[index].name;
    SWITCHYARD_CHECK(inspect_run_folder(folder, runs_[index].config) == states_[index], DataError, folder.string(),
                     " has changed since this testbed began: another process started, went on with or removed that run. It was left "
                     "as it is; when nobody works on it any more, repeat the command to take it up");
  }

  void change(size_t index, RunStatus status) {
    progress_[index].status = status;
    sink_.update(progress_, static_cast<int64_t>(index));
  }

  void collect() {
    for (size_t at = 0; at < active_.size();) {
      ActiveRun& active = active_[at];
      RunProgress& progress = progress_[active.index];
      const bool running = active.child->running();
      for (const std::string& line : active.child->read_lines()) read_progress(line, progress);
      progress.seconds = std::chrono::duration<double>(Clock::now() - active.started).count();
      if (running) {
        ++at;
        continue;
      }
      const size_t index = active.index;
      const int exit_code = active.child->exit_code().value_or(-1);
      const std::string error_tail = active.child->error_tail();
      active_.erase(active_.begin() + static_cast<int64_t>(at));
      finish(index, exit_code, error_tail);
    }
    sink_.update(progress_, -1);
  }

  // The exit code alone is not trusted: done is what left a finished log.
  void finish(size_t index, int exit_code, const std::string& error_tail) {
    RunProgress& progress = progress_[index];
    try {
      if (exit_code == 0 && read_finished_log(options_.folder / progress.name)) {
        progress.step = progress.total_steps;
        change(index, RunStatus::Done);
        return;
      }
      progress.error = failure_text(exit_code, error_tail);
    } catch (const Error& error) {
      progress.error = error.what();
    }
    change(index, is_stopped(options_) ? RunStatus::Interrupted : RunStatus::Failed);
  }

 private:
  const std::vector<PlannedRun>& runs_;
  const RunnerOptions& options_;
  TestbedSink& sink_;
  std::vector<FolderState> states_;
  std::vector<RunProgress> progress_;
  std::vector<ActiveRun> active_;
};

ProcessPlan plan_processes(int64_t cores, int64_t num_runs, int64_t asked_jobs) {
  cores = std::max<int64_t>(cores, 1);
  ProcessPlan plan;
  plan.jobs = std::max<int64_t>(1, std::min(asked_jobs > 0 ? asked_jobs : cores, std::max<int64_t>(num_runs, 1)));
  plan.threads = std::max<int64_t>(1, cores / plan.jobs);
  return plan;
}

Runner::Runner(const std::vector<PlannedRun>& runs, const RunnerOptions& options, TestbedSink& sink)
    : impl_(std::make_unique<Impl>(runs, options, sink)) {}
Runner::~Runner() = default;

std::vector<RunProgress> Runner::run() { return impl_->run(); }

}  // namespace switchyard
