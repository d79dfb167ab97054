#pragma once
// A run on a made-up data set: started, stopped, resumed, and compared with another bit for bit.

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "switchyard/core/files.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/run.hpp"
#include "tests/scratch_folder.hpp"
#include "tests/train/fixtures.hpp"

namespace switchyard {

namespace fs = std::filesystem;

/// Asks for an end when a step is done.
class StopAfter : public ProgressSink {
 public:
  explicit StopAfter(int64_t step) : step_(step) {}
  void on_step(const StepRecord& record) override {
    if (record.step == step_) stop = true;
  }
  std::atomic<bool> stop{false};

 private:
  int64_t step_;
};

/// Ends the process's work as abruptly as an exception can: no checkpoint, no end record.
class ThrowAfter : public ProgressSink {
 public:
  explicit ThrowAfter(int64_t step) : step_(step) {}
  void on_step(const StepRecord& record) override {
    if (record.step == step_) throw std::runtime_error("power cut");
  }

 private:
  int64_t step_;
};

class RunTest : public testing::Test {
 protected:
  RunTest() { write_test_dataset(scratch_.path() / "data"); }

  [[nodiscard]] RunConfig config() const { return tiny_run(scratch_.path() / "data"); }
  [[nodiscard]] fs::path folder(const std::string& name) const { return scratch_.path() / "runs" / name; }

  RunResult start(const RunConfig& run, const std::string& name) const {
    ProgressSink progress;
    return run_training(run, {folder(name), Resume::No, nullptr, "test"}, progress);
  }
  RunResult resume(const RunConfig& run, const std::string& name) const {
    ProgressSink progress;
    return run_training(run, {folder(name), Resume::Yes, nullptr, "test"}, progress);
  }
  RunResult start_and_stop(const RunConfig& run, const std::string& name, int64_t step) const {
    StopAfter progress(step);
    return run_training(run, {folder(name), Resume::No, &progress.stop, "test"}, progress);
  }
  RunResult resume_and_stop(const RunConfig& run, const std::string& name, int64_t step) const {
    StopAfter progress(step);
    return run_training(run, {folder(name), Resume::Yes, &progress.stop, "test"}, progress);
  }
  void start_and_damage_newest(const RunConfig& run, const std::string& name, int64_t step) const {
    start_and_stop(run, name, step);
    fs::remove(list_checkpoints(folder(name)).back() / "optimizer.safetensors");
  }
  void start_and_crash(const RunConfig& run, const std::string& name, int64_t step) const {
    ThrowAfter progress(step);
    EXPECT_THROW((void)run_training(run, {folder(name), Resume::No, nullptr, "test"}, progress), std::runtime_error);
  }
  [[nodiscard]] RunLog log(const std::string& name) const { return read_run_log(folder(name) / "log.jsonl"); }
  [[nodiscard]] std::vector<std::string> notices(const std::string& name) const {
    std::vector<std::string> texts;
    for (const NoticeRecord& notice : log(name).notices) texts.push_back(notice.text);
    return texts;
  }

  [[nodiscard]] int64_t store_notices(const std::string& name) const {
    int64_t count = 0;
    for (const std::string& text : notices(name)) count += text.find("its row in the store") != std::string::npos ? 1 : 0;
    return count;
  }

  /// Same weights, moments, counters and log, bit for bit; wall times aside.
  void expect_same_run(const std::string& a, const std::string& b) const {
    const fs::path one = list_checkpoints(folder(a)).back();
    const fs::path two = list_checkpoints(folder(b)).back();
    EXPECT_EQ(one.filename(), two.filename());
    for (const char* file : {"model.safetensors", "optimizer.safetensors", "balance.safetensors", "state.json"}) {
      EXPECT_EQ(sha256_file(one / file), sha256_file(two / file)) << a << " and " << b << ": " << file;
    }
    expect_same_steps(log(a), log(b));
    ASSERT_EQ(log(a).evaluations.size(), log(b).evaluations.size());
    for (size_t i = 0; i < log(a).evaluations.size(); ++i) {
      EXPECT_EQ(log(a).evaluations[i].loss, log(b).evaluations[i].loss);
      EXPECT_EQ(log(a).evaluations[i].specialization, log(b).evaluations[i].specialization);
    }
  }
  static void expect_same_steps(const RunLog& a, const RunLog& b) {
    ASSERT_EQ(a.steps.size(), b.steps.size());
    for (size_t i = 0; i < a.steps.size(); ++i) {
      EXPECT_EQ(a.steps[i].step, b.steps[i].step);
      EXPECT_EQ(a.steps[i].tokens, b.steps[i].tokens);
      EXPECT_EQ(a.steps[i].loss, b.steps[i].loss);
      EXPECT_EQ(a.steps[i].balance_loss, b.steps[i].balance_loss);
      EXPECT_EQ(a.steps[i].lbl_layers, b.steps[i].lbl_layers);
      EXPECT_EQ(a.steps[i].max_vio_step, b.steps[i].max_vio_step);
      EXPECT_EQ(a.steps[i].max_vio_micro_batch, b.steps[i].max_vio_micro_batch);
      EXPECT_EQ(a.steps[i].learning_rate, b.steps[i].learning_rate);
      EXPECT_EQ(a.steps[i].gradient_norm, b.steps[i].gradient_norm);
    }
  }

  test::ScratchFolder scratch_;
};

}  // namespace switchyard
