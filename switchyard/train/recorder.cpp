#include "switchyard/train/recorder.hpp"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

std::string config_json(const RunConfig& config) { return nlohmann::json(flatten(config)).dump(); }

std::vector<NamedScalar> step_scalars(const StepRecord& record) {
  std::vector<NamedScalar> scalars = {{"train/loss", record.loss},
                                      {"train/balance_loss", record.balance_loss},
                                      {"train/max_vio_step", record.max_vio_step},
                                      {"train/max_vio_micro_batch", record.max_vio_micro_batch},
                                      {"train/learning_rate", record.learning_rate},
                                      {"train/gradient_norm", record.gradient_norm},
                                      {"train/tokens_per_second", record.tokens_per_second}};
  if (record.lbl) scalars.emplace_back("train/lbl", *record.lbl);
  if (record.z_loss) scalars.emplace_back("train/z_loss", *record.z_loss);
  return scalars;
}

std::vector<NamedScalar> evaluation_scalars(const EvaluationRecord& record) {
  std::vector<NamedScalar> scalars = {{"heldout/loss", record.loss},
                                      {"heldout/specialization", record.specialization},
                                      {"heldout/purity", record.purity},
                                      {"heldout/agreement", record.agreement},
                                      {"heldout/max_vio_global", record.global.max_vio},
                                      {"heldout/max_vio_micro_batch", record.micro_batch.max_vio}};
  for (const DomainEvaluation& domain : record.domains) scalars.emplace_back("heldout_loss/" + domain.name, domain.loss);
  return scalars;
}

}  // namespace

RunRecorder::RunRecorder(const RunFolder& folder, const RunConfig& config, Resume resume, ProgressSink& progress)
    : folder_(folder), progress_(progress) {
  row_.folder = folder.path().filename().string();
  row_.name = config.name;
  row_.arm = config.arm;
  row_.seed = config.seed;
  row_.config_json = config_json(config);
  row_.status = "running";
  row_.started = row_.updated = utc_now();
  write_row([&](RunStore& store) { resume == Resume::No ? store.begin(row_) : store.put(row_); });
}

void RunRecorder::start(const StartRecord& record, int64_t steps_done) {
  log_.emplace(folder_.log_path(), steps_done);
  events_.emplace(folder_.path(), record.step);
  log_->add(record);
  for (EvaluationRecord& evaluation : read_run_log(folder_.log_path()).evaluations) last_evaluation_ = std::move(evaluation);
  row_.step = steps_done;
  progress_.on_start(record);
  for (const std::string& text : log_->mended()) notice(steps_done, text);
  put_row("running");
}

void RunRecorder::step(const StepRecord& record) {
  log_->add(record);
  events_->add(record.step, step_scalars(record));
  row_.step = record.step;
  progress_.on_step(record);
}

void RunRecorder::evaluation(const EvaluationRecord& record) {
  log_->add(record);
  events_->add(record.step, evaluation_scalars(record));
  last_evaluation_ = record;
  put_row("running");
  progress_.on_evaluation(record);
}

void RunRecorder::notice(int64_t step, const std::string& text) {
  const NoticeRecord record{step, text};
  log_->add(record);
  progress_.on_notice(record);
}

void RunRecorder::checkpoint(const std::filesystem::path& path, int64_t step) {
  log_->check_in_place();
  row_.step = step;
  put_row("running");
  progress_.on_checkpoint(path);
}

void RunRecorder::end(const EndRecord& record) {
  log_->add(record);
  log_->sync();
  log_->check_in_place();
  row_.step = record.step;
  put_row(record.reason);
}

void RunRecorder::failed(const std::string& message) noexcept {
  try {
    row_.message = message;
    put_row("failed");
  } catch (...) {  // NOLINT(bugprone-empty-catch): the error that is under way is the one to report
  }
}

void RunRecorder::put_row(const std::string& status) {
  row_.status = status;
  row_.updated = utc_now();
  if (last_evaluation_) {
    row_.loss = last_evaluation_->loss;
    row_.specialization = last_evaluation_->specialization;
    row_.max_vio = last_evaluation_->global.max_vio;
  }
  write_row([&](RunStore& store) { store.put(row_); });
  tell_of_store();
}

void RunRecorder::write_row(const std::function<void(RunStore&)>& write) {
  if (!store_ && !store_problem_.empty()) return;  // it could not be opened
  try {
    if (!store_) store_.emplace(folder_.store_path());
    write(*store_);
  } catch (const DataError& error) {
    if (store_problem_.empty()) store_problem_ = error.what();
  }
}

void RunRecorder::tell_of_store() {
  if (!log_ || store_problem_.empty() || std::exchange(store_told_, true)) return;
  notice(row_.step, join_text(store_problem_, "; the run goes on, but its row in the store may stay as it is. Make the store writable or "
                              "delete it: it is an index of the run folders beside it"));
}

}  // namespace switchyard
