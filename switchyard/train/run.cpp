#include "switchyard/train/run.hpp"

#include <ATen/Parallel.h>

#include <chrono>
#include <utility>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/evaluate.hpp"
#include "switchyard/train/recorder.hpp"
#include "switchyard/train/schedule.hpp"
#include "switchyard/train/step.hpp"
#include "switchyard/train/step_record.hpp"

namespace switchyard {
namespace {

constexpr int64_t kSequencesRule = 512;  // held-out sequences below which evaluation error is near the seed noise

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

RunConfig resolve(RunConfig config) {
  if (config.arm.empty()) config.arm = config.name;
  return config;
}

void check_fits(const RunConfig& config, const Dataset& dataset) {
  SWITCHYARD_CHECK(config.model.vocab_size == dataset.vocab_size(), ConfigError, "model.vocab_size is ",
                   config.model.vocab_size, "; the data set ", dataset.folder().string(), " has ", dataset.vocab_size(),
                   " tokens: set model.vocab_size = ", dataset.vocab_size());
  SWITCHYARD_CHECK(static_cast<int64_t>(config.model.dense_layers.size()) < config.model.num_layers, ConfigError,
                   "model.dense_layers leaves no layer with experts; expected at least one of ", config.model.num_layers);
}

/// Everything a run holds while it runs.
class TrainingRun {
 public:
  TrainingRun(const RunConfig& config, const RunOptions& options, RunFolder& folder, ProgressSink& progress)
      : config_(config), options_(options), folder_(folder), dataset_(config.data.path),
        batcher_((check_fits(config, dataset_), dataset_), config.data.batcher, seed()),
        compute_(resolve_compute_type(config.execution.dtype)),
        model_(config.model, compute_, static_cast<int64_t>(batcher_.domains().size()), seed()),
        optimizer_(model_.parameters(), config.optimizer), heldout_(load_heldout(dataset_, config)),
        info_{config, batcher_.domains(), dataset_.hash()} {
    state_.batcher = batcher_.state();
    // What cannot be started or resumed leaves no trace: folder and store are written only from here on.
    if (options.resume == Resume::Yes) resume();
    folder.write_config_file(config);
    recorder_.emplace(folder, config, progress);
  }

  RunResult run() {
    try {
      return train();
    } catch (const std::exception& error) {
      recorder_->failed(error.what());
      throw;
    }
  }

 private:
  RunResult train() {
    recorder_->start(start_record(), state_.step);
    add_standing_notices();
    while (state_.step < config_.steps && !stopped()) {
      train_step();
      if (is_due(config_.checkpoint.every) && !at_end()) save();
      if (is_due(config_.evaluation.every) && !at_end()) evaluate_once();
    }
    save();
    const bool done = at_end() && !stopped();
    if (done) evaluate_once();
    return finish(done ? EndReason::Done : EndReason::Interrupted);
  }

  [[nodiscard]] uint64_t seed() const { return static_cast<uint64_t>(config_.seed); }
  [[nodiscard]] bool stopped() const { return options_.stop != nullptr && options_.stop->load(); }
  [[nodiscard]] bool at_end() const { return state_.step >= config_.steps; }
  [[nodiscard]] bool is_due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  void resume() {
    const RunConfig before = folder_.read_config_file();
    for (const ConfigDifference& change : check_resume_config(before, config_)) {
      pending_notices_.push_back(join_text("resumed with ", change.key, " = ", change.after, ", was ", change.before));
    }
    if (list_checkpoints(folder_.path()).empty()) {
      pending_notices_.emplace_back("no checkpoint had been written yet: the run starts from step 0 again");
    } else {
      const FoundCheckpoint found = find_checkpoint(folder_.path());
      pending_notices_.insert(pending_notices_.end(), found.notices.begin(), found.notices.end());
      (void)check_resume_config(found.info.config, config_);
      SWITCHYARD_CHECK(found.info.data_hash == dataset_.hash(), DataError, "the data set ", dataset_.folder().string(),
                       " is not the one this run was trained on (its manifest has another SHA-256); give the old one with "
                       "--set data.path=FOLDER, or start a new run");
      load_checkpoint(found.path, model_, optimizer_, state_);
      SWITCHYARD_CHECK(config_.steps >= state_.step, ConfigError, "steps is ", config_.steps, ", but this run has done ",
                       state_.step, " steps; give at least as many");
      batcher_.restore(state_.batcher);
    }
  }

  StartRecord start_record() {
    StartRecord record = make_start_record(config_, options_.command);
    record.step = state_.step + 1;
    record.domains = batcher_.domains();
    record.num_layers = model_.num_moe_layers();
    for (const Parameter* parameter : model_.parameters()) record.parameters += parameter->master.numel();
    record.compute_type = to_string(compute_);
    record.data_hash = dataset_.hash();
    return record;
  }

  void add_standing_notices() {
    for (const std::string& text : pending_notices_) recorder_->notice(state_.step, text);
    pending_notices_.clear();
    if (state_.step > 0) return;
    if (config_.execution.dtype == ComputeType::Auto) {
      recorder_->notice(0, join_text("execution.dtype = auto: this processor computes in ", to_string(compute_)));
    }
    if (heldout_.sequences < kSequencesRule) {
      recorder_->notice(0, join_text("evaluation runs over ", heldout_.sequences, " held-out sequences; below ",
                                    kSequencesRule, " its error is near the difference between seeds"));
    }
  }

  void train_step() {
    const Clock::time_point start = Clock::now();
    const std::vector<Batch> micro_batches = batcher_.next_step();
    const StepOptions options = step_options(config_.execution);
    const StepResult result = run_step(model_, config_.balance, state_.balance, micro_batches, options, seed(), state_.step);
    const double norm = global_gradient_norm(model_.parameters());
    const double rate = learning_rate_at(config_.optimizer, state_.step, config_.steps);
    optimizer_.step(rate, clip_scale(norm, config_.optimizer.clip_norm));
    state_.step += 1;
    state_.tokens += result.tokens;
    state_.batcher = batcher_.state();
    StepRecord record = make_step_record(result, config_.balance);
    record.step = state_.step;
    record.tokens = state_.tokens;
    record.learning_rate = rate;
    record.gradient_norm = norm;
    record.seconds = seconds_since(start);
    record.tokens_per_second = static_cast<double>(result.tokens) / record.seconds;
    train_seconds_ += record.seconds;
    recorder_->step(record);
    last_step_ = record;
    if (result.lacks_history) {
      recorder_->notice(state_.step, join_text("step ", state_.step, " lacks a balancing loss: its scope takes the counts from ",
                                              "earlier steps"));
    }
    if (result.replay_differences > 0) {
      recorder_->notice(state_.step, join_text("step ", state_.step, ": ", result.replay_differences,
                                              " choices of the pre-pass were replayed where the router would have "
                                              "chosen otherwise"));
    }
  }

  void save() {
    if (last_saved_ == state_.step) return;
    const auto path = save_checkpoint(folder_.path(), info_, model_, optimizer_, state_);
    last_saved_ = state_.step;
    recorder_->checkpoint(path, state_.step);
  }

  /// A killed run may have been evaluated at this step already.
  void evaluate_once() {
    if (recorder_->last_evaluation() && recorder_->last_evaluation()->step == state_.step) return;
    const Selection selection{state_.balance.selection_offsets_LE, selection_score(config_.balance.selection.rule)};
    recorder_->evaluation(evaluate(model_, heldout_, selection, config_.evaluation.permutations, seed(), state_.step));
  }

  RunResult finish(EndReason reason) {
    EndRecord record;
    record.step = state_.step;
    record.reason = reason == EndReason::Done ? "done" : "interrupted";
    record.seconds = seconds_since(begin_);
    record.train_seconds = train_seconds_;
    recorder_->end(record);
    return {reason, state_.step, last_step_, recorder_->last_evaluation()};
  }

  const RunConfig& config_;
  const RunOptions& options_;
  RunFolder& folder_;
  Clock::time_point begin_ = Clock::now();
  Dataset dataset_;
  Batcher batcher_;
  ComputeType compute_;
  Decoder model_;
  AdamW optimizer_;
  HeldoutSet heldout_;
  CheckpointInfo info_;
  TrainingState state_;
  std::optional<StepRecord> last_step_;
  std::vector<std::string> pending_notices_;
  int64_t last_saved_ = -1;
  double train_seconds_ = 0.0;
  std::optional<RunRecorder> recorder_;
};

}  // namespace

RunResult run_training(const RunConfig& config, const RunOptions& options, ProgressSink& progress) {
  const RunConfig resolved = resolve(config);
  RunFolder folder(options.folder, options.resume);
  if (resolved.execution.threads > 0) at::set_num_threads(static_cast<int>(resolved.execution.threads));
  return TrainingRun(resolved, options, folder, progress).run();
}

}  // namespace switchyard
