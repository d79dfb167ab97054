#include "switchyard/measure/run_log.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/file_size_limit.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

class RunLogFile : public ::testing::Test {
 protected:
  void append(const std::string& text) const { std::ofstream(path_, std::ios::app | std::ios::binary) << text; }
  [[nodiscard]] std::string error_of_reading() const {
    try {
      (void)read_run_log(path_);
    } catch (const DataError& error) {
      return error.what();
    }
    return "no error";
  }

  test::ScratchFolder scratch_;
  fs::path folder_ = scratch_.path();
  fs::path path_ = folder_ / "log.jsonl";
};

StartRecord start_at(int64_t step) {
  StartRecord record;
  record.name = "demo \"quoted\" \n line, \xC3\xA9";
  record.seed = std::numeric_limits<int64_t>::max();
  record.step = step;
  record.coefficient = 0.1;
  record.domains = {"chess", "</script>"};
  record.num_experts = 16;
  return record;
}

StepRecord step_at(int64_t step) {
  StepRecord record;
  record.step = step;
  record.tokens = (int64_t{1} << 53) + 1;  // not a double
  record.loss = 0.1 + 0.2;
  record.balance_loss = 1e-300;
  record.lbl_layers = {1.0, std::nextafter(1.0, 2.0), 5e-324};
  record.lbl = 1.0 / 3.0;
  record.learning_rate = 2e-3;
  record.gradient_norm = 1.7976931348623157e308;
  return record;
}

EvaluationRecord evaluation_at(int64_t step) {
  EvaluationRecord record;
  record.step = step;
  record.sequences = 512;
  record.permutations = 200;
  record.loss = 4.867;
  record.domains = {{"chess", 2.5, 12.18, 100}, {"dna", 1.3, 3.6, 200}};
  LayerEvaluation layer;
  layer.layer = 3;
  layer.micro_batch = {1.5, 0.5, 2.25, 1.0, 0.7};
  layer.global = {0.3, 0.9, 0.0, 2.7, 0.2};
  layer.counts_NE = {{1, 2}, {(int64_t{1} << 62) + 1, 4}};
  layer.specialization = 0.393;
  layer.specialization_first_choice = 0.41;
  layer.information = 1.1;
  layer.information_null = 0.02;
  layer.information_null_deviation = 0.001;
  layer.information_ceiling = 2.0794415416798357;
  layer.information_first_choice = 1.2;
  layer.information_first_choice_null = 0.03;
  layer.information_first_choice_ceiling = 2.07;
  layer.purity = 0.5;
  layer.purity_null = 0.2;
  layer.purity_ceiling = 1.0;
  layer.agreement = 0.6;
  layer.agreement_floor = 0.125;
  layer.jensen_shannon_NN = {{0.0, 0.3}, {0.3, 0.0}};
  layer.margin = 0.05;
  record.layers = {layer, LayerEvaluation{}};
  record.micro_batch = {1.0, 2.0, 3.0, 4.0, 5.0};
  record.global = {6.0, 7.0, 8.0, 9.0, 10.0};
  record.specialization = 0.39;
  record.purity = 0.51;
  record.agreement = 0.61;
  record.margin = 0.051;
  return record;
}

TEST_F(RunLogFile, ReadsBackWhatWasWritten) {
  const NoticeRecord notice{1, "step 1 has no balancing loss"};
  const EndRecord end{2, "done", 12.25, 11.125};
  RunLogWriter writer(path_, 0);
  writer.add(start_at(1));
  writer.add(notice);
  writer.add(step_at(1));
  writer.add(step_at(2));
  writer.add(evaluation_at(2));
  writer.add(end);
  const RunLog log = read_run_log(path_);
  EXPECT_EQ(log.start, start_at(1));
  EXPECT_EQ(log.steps, (std::vector<StepRecord>{step_at(1), step_at(2)}));
  EXPECT_EQ(log.evaluations, std::vector<EvaluationRecord>{evaluation_at(2)});
  EXPECT_EQ(log.notices, std::vector<NoticeRecord>{notice});
  EXPECT_EQ(log.end, end);
}

TEST_F(RunLogFile, HoldsOneJsonObjectALine) {
  RunLogWriter(path_, 0).add(start_at(1));
  const std::string text = read_file(path_);
  EXPECT_THAT(text, ::testing::StartsWith("{\"kind\":\"start\",\"schema\":1,"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(text.back(), '\n');
}

TEST_F(RunLogFile, WritesNumbersThatAreNotFiniteAsNull) {
  StepRecord step = step_at(1);
  step.loss = kNan;
  step.gradient_norm = std::numeric_limits<double>::infinity();
  step.lbl = std::nullopt;
  step.z_loss = kNan;
  RunLogWriter writer(path_, 0);
  writer.add(start_at(1));
  writer.add(step);
  EXPECT_THAT(read_file(path_), AllOf(HasSubstr("\"loss\":null"), HasSubstr("\"gradient_norm\":null")));
  const StepRecord read = read_run_log(path_).steps.at(0);
  EXPECT_TRUE(std::isnan(read.loss));
  EXPECT_TRUE(std::isnan(read.gradient_norm));
  EXPECT_EQ(read.lbl, std::nullopt);
  EXPECT_EQ(read.z_loss, std::nullopt);
}

TEST_F(RunLogFile, ReplacesBytesThatAreNotText) {
  StartRecord start = start_at(1);
  start.command = "train \xFF.toml";
  RunLogWriter(path_, 0).add(start);
  EXPECT_EQ(read_run_log(path_).start.command, "train \xEF\xBF\xBD.toml");
}

TEST_F(RunLogFile, LeavesOutATornLastLine) {
  RunLogWriter(path_, 0).add(start_at(1));
  append("{\"kind\":\"step\",\"step\":1,\"tok");
  EXPECT_TRUE(read_run_log(path_).steps.empty());
  {
    RunLogWriter writer(path_, 5);
    writer.add(step_at(1));
  }
  EXPECT_EQ(read_run_log(path_).steps.size(), 1u);
}

TEST_F(RunLogFile, KeepsAWholeLastLineWithoutNewline) {
  {
    RunLogWriter writer(path_, 0);
    writer.add(start_at(1));
    writer.add(step_at(1));
  }
  fs::resize_file(path_, fs::file_size(path_) - 1);
  EXPECT_EQ(read_run_log(path_).steps.size(), 1u);
  RunLogWriter(path_, 1).add(step_at(2));
  EXPECT_EQ(read_run_log(path_).steps.size(), 2u);
}

TEST_F(RunLogFile, GivesAResumedRunEachStepOnce) {
  {
    RunLogWriter writer(path_, 0);
    writer.add(start_at(1));
    for (int64_t step = 1; step <= 5; ++step) writer.add(step_at(step));
    writer.add(evaluation_at(3));
    writer.add(evaluation_at(5));
    writer.add(NoticeRecord{2, "early"});
    writer.add(NoticeRecord{4, "late"});
    writer.add(EndRecord{5, "interrupted", 1.0, 1.0});
    writer.add(start_at(6));
  }
  RunLogWriter writer(path_, 3);
  writer.add(start_at(4));
  writer.add(step_at(4));
  const RunLog log = read_run_log(path_);
  ASSERT_EQ(log.steps.size(), 4u);
  EXPECT_EQ(log.steps.back().step, 4);
  EXPECT_EQ(log.evaluations, std::vector<EvaluationRecord>{evaluation_at(3)});
  EXPECT_EQ(log.notices, (std::vector<NoticeRecord>{{2, "early"}}));
  EXPECT_EQ(log.start.step, 4);
  EXPECT_EQ(log.end, std::nullopt);
}

class LoggedSteps : public RunLogFile {
 protected:
  void write_steps(const std::vector<int64_t>& steps) const {
    fs::remove(path_);
    RunLogWriter writer(path_, 0);
    writer.add(start_at(1));
    for (const int64_t step : steps) writer.add(step_at(step));
  }
  [[nodiscard]] std::vector<int64_t> steps() const {
    std::vector<int64_t> found;
    for (const StepRecord& record : read_run_log(path_).steps) found.push_back(record.step);
    return found;
  }
  /// What opening it for a resumed run tells.
  [[nodiscard]] std::vector<std::string> mended(int64_t keep_until_step) const { return RunLogWriter(path_, keep_until_step).mended(); }
};

TEST_F(LoggedSteps, TellsWhichOnesAreMissing) {
  write_steps({1, 2, 3, 4, 5});
  EXPECT_THAT(mended(5), ::testing::IsEmpty());
  EXPECT_THAT(mended(3), ::testing::IsEmpty());
  write_steps({2, 3, 6, 7, 9, 11});
  EXPECT_THAT(mended(10), ::testing::ElementsAre(HasSubstr("lacks steps 1, 4-5, 8, 10 of the 10 that were done")));
  EXPECT_EQ(steps(), (std::vector<int64_t>{2, 3, 6, 7, 9}));
  fs::remove(path_);
  EXPECT_THAT(mended(0), ::testing::IsEmpty());
  EXPECT_THAT(mended(1), ::testing::ElementsAre(HasSubstr("lacks step 1 of the 1")));
}

TEST_F(LoggedSteps, AreKeptOnceAsTheyWereDoneLast) {
  write_steps({1, 2, 3, 4});
  RunLogWriter(path_, 4).add(EvaluationRecord{evaluation_at(4)});
  StepRecord again = step_at(3);
  again.loss = 7.0;
  append(to_json_line(again) + "\n" + to_json_line(step_at(4)) + "\n");
  EXPECT_THAT(mended(4), ::testing::ElementsAre(HasSubstr("had steps 3-4 more than once")));
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3, 4}));
  EXPECT_EQ(read_run_log(path_).steps[2].loss, 7.0);
  EXPECT_EQ(read_run_log(path_).evaluations.size(), 1u);
}

TEST_F(LoggedSteps, AreCutBeforeABrokenLineThatNothingKeptFollows) {
  write_steps({1, 2, 3});
  append("{\"kind\":\"step\",\"st{\"kind\":\n" + std::string(20, '\0') + "\n");
  append(to_json_line(step_at(4)) + "\n");
  const std::string damaged = read_file(path_);
  EXPECT_THAT([&] { (void)mended(4); }, ::testing::ThrowsMessage<DataError>(AllOf(HasSubstr("log.jsonl:5"), HasSubstr("not JSON"))));
  EXPECT_EQ(read_file(path_), damaged);
  EXPECT_EQ(find_start(path_), start_at(1));
  EXPECT_THAT(mended(3), ::testing::ElementsAre(HasSubstr("log.jsonl:5 could not be read")));
  EXPECT_EQ(steps(), (std::vector<int64_t>{1, 2, 3}));
  EXPECT_THAT(mended(3), ::testing::IsEmpty());
}

TEST_F(RunLogFile, IsNoLongerThatWhichTheRunWritesOnceItIsMoved) {
  const RunLogWriter writer(path_, 0);
  EXPECT_NO_THROW(writer.check_in_place());
  fs::rename(path_, folder_ / "moved");
  EXPECT_THAT([&] { writer.check_in_place(); }, ::testing::ThrowsMessage<DataError>(HasSubstr("moved or removed")));
}

// A process that was killed before its first step still worked on the run: its start stays, a later one goes.
TEST_F(RunLogFile, KeepsStartsUpToTheNextStep) {
  {
    RunLogWriter writer(path_, 0);
    writer.add(start_at(1));
    writer.add(step_at(1));
    writer.add(start_at(2));
  }
  { const RunLogWriter second(path_, 1); }
  EXPECT_EQ(read_run_log(path_).start.step, 2);
  { const RunLogWriter third(path_, 0); }
  EXPECT_EQ(read_run_log(path_).start.step, 1);
}

TEST_F(RunLogFile, AnEndBelongsToTheLastStart) {
  RunLogWriter writer(path_, 0);
  writer.add(start_at(1));
  writer.add(EndRecord{2, "interrupted", 1.0, 1.0});
  EXPECT_TRUE(read_run_log(path_).end.has_value());
  writer.add(start_at(3));
  EXPECT_FALSE(read_run_log(path_).end.has_value());
}

TEST_F(RunLogFile, RefusesAnotherSchema) {
  append("{\"kind\":\"start\",\"schema\":2,\"step\":1}\n");
  EXPECT_THAT(error_of_reading(), AllOf(HasSubstr("log.jsonl:1"), HasSubstr("log schema 2"), HasSubstr("reads 1")));
  EXPECT_THROW(RunLogWriter(path_, 0), DataError);
  EXPECT_THAT(read_file(path_), HasSubstr("\"schema\":2"));  // not touched
}

TEST_F(RunLogFile, NamesFileLineAndKeyOfADamagedRecord) {
  RunLogWriter(path_, 0).add(start_at(1));
  const std::string good = read_file(path_);
  const auto read_with = [&](const std::string& line) {
    write_file_atomically(path_, good + line);
    return error_of_reading();
  };
  EXPECT_THAT(read_with("{\"kind\":\"step\"\n"), AllOf(HasSubstr("log.jsonl:2"), HasSubstr("not JSON")));
  EXPECT_THAT(read_with("[1]\n"), HasSubstr("not a JSON object"));
  EXPECT_THAT(read_with("{\"step\":1}\n"), HasSubstr("no 'kind'"));
  EXPECT_THAT(read_with("{\"kind\":\"notice\",\"step\":1}\n"), HasSubstr("no 'text'"));
  EXPECT_THAT(read_with("{\"kind\":\"notice\",\"step\":1.5,\"text\":\"\"}\n"), HasSubstr("'step' is 1.5; expected a 64-bit"));
  EXPECT_THAT(read_with("{\"kind\":\"notice\",\"step\":9223372036854775808,\"text\":\"\"}\n"), HasSubstr("64-bit"));
  EXPECT_THAT(read_with("{\"kind\":\"notice\",\"step\":1,\"text\":7}\n"), HasSubstr("'text' is 7; expected a string"));
  EXPECT_THAT(read_with("{\"kind\":\"end\",\"step\":1,\"reason\":\"\",\"seconds\":\"1\",\"train_seconds\":1}\n"),
              HasSubstr("expected a number or null"));
}

TEST_F(RunLogFile, IgnoresWhatItDoesNotKnow) {
  RunLogWriter(path_, 0).add(start_at(1));
  append("{\"kind\":\"later_kind\",\"step\":1}\n{\"kind\":\"notice\",\"step\":1,\"text\":\"a\",\"more\":[1]}\n");
  EXPECT_EQ(read_run_log(path_).notices.size(), 1u);
}

TEST_F(RunLogFile, WithoutAStartIsRefused) {
  append("");
  EXPECT_THAT(error_of_reading(), HasSubstr("no start record"));
  append("{\"kind\":\"notice\",\"step\":1,\"text\":\"a\"}\n");
  EXPECT_THAT(error_of_reading(), HasSubstr("no start record"));
  fs::remove(path_);
  EXPECT_THAT(error_of_reading(), HasSubstr("log.jsonl"));
}

TEST_F(RunLogFile, ReportsAFileThatCannotBeWritten) {
  EXPECT_THROW(RunLogWriter(folder_ / "absent" / "log.jsonl", 0), DataError);
  EXPECT_THROW(RunLogWriter(folder_, 0), DataError);
}

// Space is free again when the writer ends: it must not write then what it could not write before.
TEST_F(RunLogFile, AFullDiskLeavesWholeLines) {
  auto writer = std::make_unique<RunLogWriter>(path_, 0);
  writer->add(start_at(1));
  const std::string whole = read_file(path_);
  std::string message = "no error";
  {
    const test::FileSizeLimit disk(whole.size() + 100);
    try {
      writer->add(step_at(1));
    } catch (const DataError& error) {
      message = error.what();
    }
  }
  EXPECT_THAT(message, AllOf(HasSubstr("log.jsonl"), HasSubstr("disk may be full")));
  EXPECT_EQ(read_file(path_), whole);
  writer.reset();
  EXPECT_EQ(read_file(path_), whole);
}

}  // namespace
}  // namespace switchyard
