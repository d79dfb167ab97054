#pragma once
// Whole runs on ranks that are threads, in a scratch folder.

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "switchyard/data/batch.hpp"
#include "switchyard/train/run.hpp"
#include "tests/train/fixtures.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {

/// Counts exactly, the rest up to rounding in double.
void expect_near_evaluation(const EvaluationRecord& a, const EvaluationRecord& b);

class RankedRunTest : public testing::Test {
 protected:
  RankedRunTest();

  /// Four micro-batches a step, in double.
  [[nodiscard]] RunConfig config() const;
  [[nodiscard]] std::filesystem::path folder(const std::string& name) const { return scratch_.path() / "runs" / name; }
  [[nodiscard]] std::filesystem::path newest(const std::string& name) const;  // checkpoint
  [[nodiscard]] std::vector<std::string> notices(const std::string& name) const;

  void start(int64_t num_ranks, const RunConfig& run, const std::string& name) const;
  void resume(int64_t num_ranks, const RunConfig& run, const std::string& name) const;
  /// Only `asked_rank` is told to stop, while `step` is the last that the first rank has reported.
  void start_and_stop(int64_t num_ranks, const RunConfig& run, const std::string& name, int64_t step, int64_t asked_rank) const;
  /// The first rank throws std::runtime_error("power cut") after `step`.
  void start_and_fail(int64_t num_ranks, const RunConfig& run, const std::string& name, int64_t step) const;
  /// What each rank threw, the first being given `first`, the others `others`.
  [[nodiscard]] std::vector<std::string> errors(int64_t num_ranks, const RunConfig& first, const RunConfig& others) const;
  /// The same where the first is to go on with the run `name` and the others are to start one.
  [[nodiscard]] std::vector<std::string> errors_where_one_resumes(int64_t num_ranks, const RunConfig& run,
                                                                  const std::string& name) const;

  /// Same curve, weights, moments and evaluation up to rounding in double; tokens and counts exactly.
  void expect_near_run(const std::string& a, const std::string& b) const;

  /// Loss of each step of a bare loop of run_step() and AdamW over the data of `run`.
  /// @param shape  makes of the step's micro-batches those that are trained on
  [[nodiscard]] static std::vector<double> curve(const RunConfig& run, const BalanceConfig& balance, int64_t num_ranks,
                                                 const std::function<std::vector<Batch>(const std::vector<Batch>&)>& shape);

 private:
  test::ScratchFolder scratch_;
};

}  // namespace switchyard
