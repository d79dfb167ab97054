#include "tests/train/ranked_runs.hpp"

#include <gmock/gmock.h>

#include <atomic>
#include <mutex>

#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/model/weights_file.hpp"
#include "switchyard/train/adamw.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/step.hpp"

namespace switchyard {
namespace {

constexpr double kNearRun = 1e-9;  // six steps in double

class StepHook : public ProgressSink {
 public:
  explicit StepHook(std::function<void(int64_t)> hook) : hook_(std::move(hook)) {}
  void on_step(const StepRecord& record) override { hook_(record.step); }

 private:
  std::function<void(int64_t)> hook_;
};

RunOptions options_of(const std::filesystem::path& folder, Resume resume, Communicator& comm) {
  RunOptions options;
  options.folder = folder;
  options.resume = resume;
  options.command = "test";
  options.comm = &comm;
  return options;
}

void expect_near_tensors(const std::filesystem::path& a, const std::filesystem::path& b) {
  const TensorMap one = load_tensors(a).tensors;
  const TensorMap two = load_tensors(b).tensors;
  ASSERT_EQ(one.size(), two.size()) << a;
  for (const auto& [name, tensor] : one) {
    ASSERT_TRUE(two.contains(name)) << name;
    ASSERT_EQ(tensor.sizes(), two.at(name).sizes()) << name;
    EXPECT_LT(tensor.sub(two.at(name)).abs().max().item<double>(), kNearRun) << name;
  }
}

/// What each rank threw.
std::vector<std::string> errors_of(int64_t num_ranks, const std::function<void(Communicator&)>& body) {
  std::vector<std::string> texts;
  std::mutex mutex;
  run_ranks(num_ranks, [&](Communicator& comm) {
    std::string text = "no error";
    try {
      body(comm);
    } catch (const Error& error) {
      text = error.what();
    }
    const std::lock_guard lock(mutex);
    texts.push_back(text);
  });
  return texts;
}

}  // namespace

void expect_near_evaluation(const EvaluationRecord& a, const EvaluationRecord& b) {
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_NEAR(a.loss, b.loss, kNearRun);
  EXPECT_NEAR(a.specialization, b.specialization, kNearRun);
  EXPECT_NEAR(a.purity, b.purity, kNearRun);
  EXPECT_NEAR(a.margin, b.margin, kNearRun);
  EXPECT_EQ(a.global, b.global);  // of counts
  ASSERT_EQ(a.domains.size(), b.domains.size());
  for (size_t i = 0; i < a.domains.size(); ++i) EXPECT_NEAR(a.domains[i].loss, b.domains[i].loss, kNearRun);
  EXPECT_NEAR(a.micro_batch.max_vio, b.micro_batch.max_vio, kNearRun);
}

RankedRunTest::RankedRunTest() { write_test_dataset(scratch_.path() / "data"); }

RunConfig RankedRunTest::config() const {
  RunConfig run = tiny_run(scratch_.path() / "data");
  run.data.batcher.micro_batches = 4;
  run.execution.dtype = ComputeType::Float64;
  run.execution.time_limit = 60;
  return run;
}

std::filesystem::path RankedRunTest::newest(const std::string& name) const { return list_checkpoints(folder(name)).back(); }

std::vector<std::string> RankedRunTest::notices(const std::string& name) const {
  std::vector<std::string> texts;
  for (const NoticeRecord& notice : read_run_log(folder(name) / "log.jsonl").notices) texts.push_back(notice.text);
  return texts;
}

void RankedRunTest::start(int64_t num_ranks, const RunConfig& run, const std::string& name) const {
  run_ranks(num_ranks, [&](Communicator& comm) {
    ProgressSink progress;
    const RunResult result = run_training(run, options_of(folder(name), Resume::No, comm), progress);
    EXPECT_EQ(result.reason, EndReason::Done);
    EXPECT_EQ(result.evaluation.has_value(), comm.rank() == 0);
  });
}

void RankedRunTest::resume(int64_t num_ranks, const RunConfig& run, const std::string& name) const {
  run_ranks(num_ranks, [&](Communicator& comm) {
    ProgressSink progress;
    EXPECT_EQ(run_training(run, options_of(folder(name), Resume::Yes, comm), progress).reason, EndReason::Done);
  });
}

void RankedRunTest::start_and_stop(int64_t num_ranks, const RunConfig& run, const std::string& name, int64_t step,
                                   int64_t asked_rank) const {
  std::atomic<bool> stop{false};
  run_ranks(num_ranks, [&](Communicator& comm) {
    StepHook progress([&](int64_t done) {
      if (done == step) stop = true;
    });
    RunOptions options = options_of(folder(name), Resume::No, comm);
    if (comm.rank() == asked_rank) options.stop = &stop;
    const RunResult result = run_training(run, options, progress);
    EXPECT_EQ(result.reason, EndReason::Interrupted);
    EXPECT_GE(result.step, step);  // the asked rank may be a step behind the report
    EXPECT_LE(result.step, step + 1);
  });
}

void RankedRunTest::start_and_fail(int64_t num_ranks, const RunConfig& run, const std::string& name, int64_t step) const {
  run_ranks(num_ranks, [&](Communicator& comm) {
    StepHook progress([&](int64_t done) {
      if (done == step) throw std::runtime_error("power cut");
    });
    (void)run_training(run, options_of(folder(name), Resume::No, comm), progress);
  });
}

std::vector<std::string> RankedRunTest::errors(int64_t num_ranks, const RunConfig& first, const RunConfig& others) const {
  return errors_of(num_ranks, [&](Communicator& comm) {
    ProgressSink progress;
    (void)run_training(comm.rank() == 0 ? first : others, options_of(folder("errors"), Resume::No, comm), progress);
  });
}

std::vector<std::string> RankedRunTest::errors_where_one_resumes(int64_t num_ranks, const RunConfig& run,
                                                                 const std::string& name) const {
  return errors_of(num_ranks, [&](Communicator& comm) {
    ProgressSink progress;
    const bool is_first = comm.rank() == 0;
    const std::filesystem::path where = folder(is_first ? name : "errors");
    (void)run_training(run, options_of(where, is_first ? Resume::Yes : Resume::No, comm), progress);
  });
}

void RankedRunTest::expect_near_run(const std::string& a, const std::string& b) const {
  SCOPED_TRACE(join_text(a, " and ", b));
  const RunLog one = read_run_log(folder(a) / "log.jsonl");
  const RunLog two = read_run_log(folder(b) / "log.jsonl");
  ASSERT_EQ(one.steps.size(), two.steps.size());
  for (size_t i = 0; i < one.steps.size(); ++i) {
    EXPECT_EQ(one.steps[i].tokens, two.steps[i].tokens);
    EXPECT_NEAR(one.steps[i].loss, two.steps[i].loss, kNearRun) << "step " << i;
    EXPECT_NEAR(one.steps[i].balance_loss, two.steps[i].balance_loss, kNearRun);
    EXPECT_NEAR(one.steps[i].gradient_norm, two.steps[i].gradient_norm, kNearRun);
    EXPECT_EQ(one.steps[i].max_vio_step, two.steps[i].max_vio_step);
    EXPECT_NEAR(one.steps[i].max_vio_micro_batch, two.steps[i].max_vio_micro_batch, kNearRun);
  }
  ASSERT_EQ(one.evaluations.size(), two.evaluations.size());
  for (size_t i = 0; i < one.evaluations.size(); ++i) expect_near_evaluation(one.evaluations[i], two.evaluations[i]);
  EXPECT_EQ(one.start.parameters, two.start.parameters);
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    expect_near_tensors(newest(a) / file, newest(b) / file);
  }
}

std::vector<double> RankedRunTest::curve(const RunConfig& run, const BalanceConfig& balance, int64_t num_ranks,
                                         const std::function<std::vector<Batch>(const std::vector<Batch>&)>& shape) {
  const Dataset dataset(run.data.path);
  std::vector<double> losses;
  run_ranks(num_ranks, [&](Communicator& comm) {
    const auto seed = static_cast<uint64_t>(run.seed);
    Batcher batcher(dataset, run.data.batcher, seed);
    Decoder model(run.model, ComputeType::Float64, 3, seed);
    AdamW optimizer(model.parameters(), run.optimizer);
    BalanceState state;
    const BalanceRanks ranks{comm};
    ExecutionConfig execution;
    execution.forward = ForwardPacking::Separate;
    for (int64_t step = 0; step < run.steps; ++step) {
      const std::vector<Batch> share = share_of_rank(shape(batcher.next_step()), comm.rank(), comm.size());
      const StepResult result = run_step(model, balance, state, share, execution, seed, step, ranks);
      sum_gradients(model.parameters(), comm);
      optimizer.step(run.optimizer.learning_rate);
      if (comm.rank() == 0) losses.push_back(result.loss);
    }
  });
  return losses;
}

}  // namespace switchyard
