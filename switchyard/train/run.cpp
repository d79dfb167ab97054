#include "switchyard/train/run.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/model/flops.hpp"
#include "switchyard/train/build_info.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/data_fit.hpp"
#include "switchyard/train/evaluate.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/memory_need.hpp"
#include "switchyard/train/notices.hpp"
#include "switchyard/train/recorder.hpp"
#include "switchyard/train/resume_point.hpp"
#include "switchyard/train/run_ranks.hpp"
#include "switchyard/train/schedule.hpp"
#include "switchyard/train/step.hpp"
#include "switchyard/train/step_profiler.hpp"
#include "switchyard/train/step_record.hpp"
#include "switchyard/train/update_shares.hpp"

namespace switchyard {
namespace {

constexpr int64_t kStepsBeforeProfile = 2;  // code for new shapes is generated, memory comes from the system

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

RunConfig resolve(RunConfig config) {
  if (config.arm.empty()) config.arm = config.name;
  return config;
}

Dataset open_fitting_dataset(const RunConfig& config) {
  Dataset dataset(config.data.path);
  check_fits(config, dataset);
  dataset.check_files();  // a file of another data set may be whole in itself, and fit; each rank reads its own
  return dataset;
}

/// Ranks divide among them what the optimizer, which is made next, does to parameters that each holds whole.
Decoder make_model(const RunConfig& config, ComputeType compute, int64_t num_domains, const RunRanks& ranks) {
  Communicator* const expert_ranks = config.execution.experts == ExpertPlacement::Sharded ? &ranks.comm() : nullptr;
  Decoder model(config.model, compute, num_domains, static_cast<uint64_t>(config.seed), expert_ranks);
  share_updates(model.parameters(), ranks.comm());
  return model;
}

/// Everything a run holds while it runs, on one of its ranks. Made without messages; the rest is collective.
class TrainingRun {
 public:
  /// @param point  of the first rank
  TrainingRun(const RunConfig& config, ComputeType compute, const RunOptions& options, RunFolder* folder, const ResumePoint& point,
              RunRanks& ranks)
      : config_(config), options_(options), folder_(folder), point_(point), ranks_(ranks), dataset_(open_fitting_dataset(config)),
        batcher_(dataset_, config.data.batcher, seed()), compute_(compute),
        model_(make_model(config, compute, static_cast<int64_t>(batcher_.domains().size()), ranks)),
        optimizer_(model_.parameters(), config.optimizer), heldout_(load_heldout(dataset_, config)),
        info_{config, batcher_.domains(), dataset_.hash()} {
    state_.batcher = batcher_.state();
  }

  /// What cannot be started or resumed leaves no folder: it and the store are written only at the end of this.
  void prepare(ProgressSink& progress) {
    const BuildInfo program = build_info();
    ranks_.require_same("program", join_text(program.version, ", commit ", program.commit, ", PyTorch ", program.torch_version));
    ranks_.require_same_config(config_);
    ranks_.require_same("data set (SHA-256 of its manifest)", dataset_.hash());
    ranks_.require_same("compute type", to_string(compute_));
    if (options_.resume == Resume::Yes) resume();
    ranks_.together([&] { check_profile(); });
    state_.ranks = ranks_.size();
    ranks_.together([&] {
      if (folder_ == nullptr) return;
      recorder_.emplace(*folder_, config_, options_.resume, progress);  // a folder with a configuration is kept, so that comes last
      try {
        folder_->write_config_file(config_);
      } catch (const std::exception& error) {
        recorder_->failed(error.what());
        throw;
      }
    });
  }

  RunResult run() {
    try {
      return train();
    } catch (const std::exception& error) {
      if (recorder_) recorder_->failed(error.what());
      throw;
    }
  }

 private:
  RunResult train() {
    if (recorder_) recorder_->start(start_record(), state_.step);
    add_standing_notices();
    // Its process may have been killed between checkpoint and evaluation.
    if (state_.step > 0 && is_due(config_.evaluation.every) && !at_end()) evaluate_once();
    while (!at_end() && !stopped()) {
      start_profile();
      train_step();
      end_profile();
      if (is_due(config_.checkpoint.every) && !at_end()) save();
      if (is_due(config_.evaluation.every) && !at_end()) evaluate_once();
    }
    if (profiler_) finish_profile();
    save();
    const bool done = at_end() && !stopped();
    if (done) evaluate_once();
    return finish(done ? EndReason::Done : EndReason::Interrupted);
  }

  void check_profile() const {
    const int64_t steps_left = config_.steps - state_.step;
    SWITCHYARD_CHECK(options_.profile_steps == 0 || options_.profile_steps + kStepsBeforeProfile <= steps_left, UsageError,
                     "a profile of ", options_.profile_steps, " steps was asked for; expected at most ",
                     std::max<int64_t>(steps_left - kStepsBeforeProfile, 0), ": ", steps_left, " steps are left, and the first ",
                     kStepsBeforeProfile, " are not typical");
  }

  [[nodiscard]] uint64_t seed() const { return static_cast<uint64_t>(config_.seed); }
  [[nodiscard]] bool at_end() const { return state_.step >= config_.steps; }
  [[nodiscard]] bool is_due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  /// Whether any rank was asked to stop: all must end after the same step. Collective.
  [[nodiscard]] bool stopped() {
    return ranks_.sum(options_.stop != nullptr && options_.stop->load() ? 1 : 0) > 0;
  }

  void notice(const std::string& text) {
    if (recorder_) recorder_->notice(state_.step, text);
  }

  /// The first rank has chosen the checkpoint and verified it; all read it, each from what it sees at that path, which may be a disk
  /// of its own.
  void resume() {
    const std::string checkpoint = ranks_.from_first(point_.checkpoint.string());
    if (checkpoint.empty()) return;
    std::string hash;
    ranks_.together([&] {
      if (!ranks_.is_first()) (void)verify_checkpoint(checkpoint);
      hash = checkpoint_hash(checkpoint);
    });
    ranks_.require_same("what they read at " + checkpoint + " (SHA-256 of its manifest; give all of them the same run folder)", hash);
    ranks_.together([&] {
      SWITCHYARD_CHECK(folder_ == nullptr || point_.data_hash == dataset_.hash(), DataError, "the data set ", dataset_.folder().string(),
                       " is not the one this run was trained on (its manifest has another SHA-256); give the old one with "
                       "--set data.path=FOLDER, or start a new run");
    });
    ranks_.together([&] {
      load_checkpoint(checkpoint, model_, optimizer_, state_);
      SWITCHYARD_CHECK(config_.steps >= state_.step, ConfigError, "steps is ", config_.steps, ", but this run has done ",
                       state_.step, " steps; give at least as many");
      batcher_.restore(state_.batcher);
    });
    ranks_before_ = state_.ranks;
  }

  StartRecord start_record() {
    StartRecord record = make_start_record(config_, options_.command);
    record.step = state_.step + 1;
    record.domains = batcher_.domains();
    record.num_layers = model_.num_moe_layers();
    for (const Parameter* parameter : model_.parameters()) {
      const int64_t parts = is_sharded(*parameter) ? parameter->shard.whole / sizes_of(*parameter)[0] : 1;
      record.parameters += parts * parameter->compute.numel();
    }
    record.compute_type = to_string(compute_);
    record.data_hash = dataset_.hash();
    return record;
  }

  void add_standing_notices() {
    for (const std::string& text : point_.notices) notice(text);
    const auto domains = static_cast<int64_t>(batcher_.domains().size());
    const RunStart start{state_.step, ranks_.size(), ranks_before_, compute_, heldout_.sequences, domains,
                         count_documents(heldout_)};
    for (const std::string& text : standing_notices(config_, start)) notice(text);
  }

  [[nodiscard]] bool profiles() const { return options_.profile_steps > 0 && recorder_.has_value(); }

  void start_profile() {
    if (profiles() && steps_here_ == kStepsBeforeProfile) profiler_.emplace(compute_);
  }

  void end_profile() {
    ++steps_here_;
    if (profiler_ && steps_here_ - kStepsBeforeProfile == options_.profile_steps) finish_profile();
  }

  /// Of the steps so far: fewer than were asked for where the run is stopped.
  void finish_profile() {
    const int64_t steps = steps_here_ - kStepsBeforeProfile;
    folder_->check_in_place();
    const std::filesystem::path profile_folder = folder_->path() / "profile";
    std::filesystem::create_directories(profile_folder);
    const double flops = 3.0 * forward_flops(config_.model, tokens_of_step(), config_.data.batcher.sequence_length);
    ProfileReport report = profiler_->finish(steps, flops, profile_folder / "trace.json");
    report.first_step = state_.step - steps + 1;
    profiler_.reset();
    write_file_atomically(profile_folder / "summary.json", to_json(report));
    recorder_->profile(report, profile_folder);
  }

  /// Of this rank.
  [[nodiscard]] int64_t tokens_of_step() const {
    const BatcherConfig& batches = config_.data.batcher;
    return batches.micro_batches * batches.sequences_per_micro_batch * batches.sequence_length / ranks_.size();
  }

  void train_step() {
    const PartScope part(kOtherPart);
    const Clock::time_point start = Clock::now();
    ranks_.comm().set_step(state_.step);
    const std::vector<Batch> micro_batches = share_of_rank(batcher_.next_step(), ranks_.rank(), ranks_.size());
    StepResult result = run_step(model_, config_.balance, state_.balance, micro_batches, config_.execution, seed(), state_.step,
                                 ranks_.balance());
    const ParameterRefs parameters = model_.parameters();
    sum_gradients(parameters, ranks_.comm());
    add_parameter_losses(model_, config_.balance, result);
    const double norm = global_gradient_norm(parameters, ranks_.comm());
    check_learns(norm, result.loss);
    const double rate = learning_rate_at(config_.optimizer, state_.step, config_.steps);
    optimizer_.step(rate, clip_scale(norm, config_.optimizer.clip_norm));
    gather_updates(parameters, ranks_.comm());
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
    if (recorder_) recorder_->step(record);
    last_step_ = record;
    add_step_notices(result);
  }

  // Every rank has the same norm.
  void check_learns(double norm, double loss) const {
    if (norm > 0.0) return;
    const std::string problem = join_text("the gradient of step ", state_.step + 1, " is 0 for every weight (loss ", loss,
                                          "): nothing is learned",
                                          state_.step == 0 ? ". No rate has acted yet: look at model.init_deviation, model.norm_epsilon and the losses"
                                                           : " any more. Lower optimizer.learning_rate");
    if (ranks_.size() > 1) throw SharedError(problem);
    throw StateError(problem);
  }

  void add_step_notices(const StepResult& result) {
    for (const TermValues& term : result.balance.terms) {
      if (!result.lacks_history || term.term.coefficient == 0.0 || !term.value_L.empty()) continue;
      notice(join_text("step ", state_.step, " lacks a balancing loss, that over ", to_string(term.term.scope),
                       ": it takes the counts from earlier steps"));
    }
    if (result.replay_differences > 0) {
      notice(join_text("step ", state_.step, ": ", result.replay_differences,
                       " choices of the pre-pass were replayed where the router would have chosen otherwise"));
    }
  }

  void save() {
    if (last_saved_ == state_.step) return;
    last_saved_ = state_.step;
    const std::filesystem::path run_folder = folder_ == nullptr ? std::filesystem::path() : folder_->path();
    ranks_.together([&] {
      if (folder_ == nullptr) return;
      folder_->check_in_place();
      recorder_->before_checkpoint();
    });
    const SavedCheckpoint saved = save_checkpoint(run_folder, info_, model_, optimizer_, state_, ranks_, passed_over_);
    std::erase(passed_over_, saved.path);  // replaced by a whole one
    for (const std::string& text : saved.notices) notice(text);
    if (recorder_) recorder_->checkpoint(saved.path, state_.step);
  }

  void evaluate_once() {
    // A killed run may have been evaluated at this step already; the first rank has the log.
    const bool known = recorder_ && recorder_->last_evaluation() && is_asked_for(*recorder_->last_evaluation());
    if (ranks_.sum(known ? 1 : 0) > 0) return;
    const Selection selection{state_.balance.selection_offsets_LE, selection_score(config_.balance.selection.rule)};
    const std::optional<EvaluationRecord> record =
        evaluate(model_, heldout_, {selection, config_.evaluation.permutations, seed(), state_.step}, ranks_);
    if (recorder_) recorder_->evaluation(record.value());
  }

  /// Whether it is of this step and over as much as is asked for now.
  [[nodiscard]] bool is_asked_for(const EvaluationRecord& record) const {
    return record.step == state_.step && record.sequences == heldout_.sequences &&
           record.permutations == config_.evaluation.permutations;
  }

  RunResult finish(EndReason reason) {
    EndRecord record;
    record.step = state_.step;
    record.reason = reason == EndReason::Done ? "done" : "interrupted";
    record.seconds = seconds_since(begin_);
    record.train_seconds = train_seconds_;
    if (recorder_) {
      folder_->check_in_place();
      recorder_->end(record);
    }
    RunResult result{reason, state_.step, last_step_, std::nullopt};
    if (recorder_) result.evaluation = recorder_->last_evaluation();
    ranks_.together([] {});  // nobody leaves while the first rank may still fail to write
    return result;
  }

  const RunConfig& config_;
  const RunOptions& options_;
  RunFolder* folder_;  // null: another rank writes
  const ResumePoint& point_;
  RunRanks& ranks_;
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
  std::vector<std::filesystem::path> passed_over_ = point_.passed_over;  // damaged checkpoints; first rank only
  int64_t last_saved_ = -1;
  int64_t ranks_before_ = ranks_.size();  // of the process that wrote the checkpoint
  double train_seconds_ = 0.0;
  std::optional<RunRecorder> recorder_;  // first rank only
  std::optional<StepProfiler> profiler_;
  int64_t steps_here_ = 0;  // done by this process
};

void check_ranks(const RunConfig& config, int64_t num_ranks) {
  SWITCHYARD_CHECK(config.data.batcher.micro_batches % num_ranks == 0, ConfigError, "data.micro_batches is ",
                   config.data.batcher.micro_batches, ", which ", num_ranks,
                   " ranks cannot share evenly; expected a multiple of ", num_ranks);
}

/// auto goes on in the type that the run began in: another processor may be faster in another one. Collective
/// @param before  of the first rank; empty where it is not known
ComputeType compute_type_of(const RunConfig& config, const std::string& before, RunRanks& ranks) {
  const std::string same = ranks.from_first(before);
  ComputeType type = config.execution.dtype;
  if (!same.empty()) parse(same, type);
  return resolve_compute_type(type);
}

}  // namespace

RunResult run_training(const RunConfig& config, const RunOptions& options, ProgressSink& progress) {
  const RunConfig resolved = resolve(config);
  RunRanks ranks(options.comm);
  ranks.comm().set_time_limit(std::chrono::seconds(resolved.execution.time_limit));
  ranks.require_same("what they were asked for", options.resume == Resume::Yes ? "--resume" : "a new run");  // other messages follow
  std::unique_ptr<RunFolder> folder;  // opened by the first rank
  ResumePoint point;                  // found by the first rank
  std::unique_ptr<TrainingRun> run;
  ranks.together([&] {
    check_ranks(resolved, ranks.size());
    if (ranks.is_first()) folder = std::make_unique<RunFolder>(options.folder, options.resume);
    if (folder && options.resume == Resume::Yes) point = find_resume_point(*folder, resolved);
    if (resolved.execution.threads > 0) at::set_num_threads(static_cast<int>(resolved.execution.threads));
  });
  const ComputeType compute = compute_type_of(resolved, point.compute_type, ranks);
  ranks.together([&] {
    check_memory(resolved, compute, ranks.size(), ranks_on_this_machine(), machine_memory());
    run = std::make_unique<TrainingRun>(resolved, compute, options, folder.get(), point, ranks);
  });
  run->prepare(progress);
  return run->run();
}

}  // namespace switchyard
