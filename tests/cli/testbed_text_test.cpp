#include "switchyard/cli/testbed_text.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

Summary summary(double mean) {
  const std::vector<double> values = {mean};
  return summarize(values);
}

Study make_study() {
  Study study;
  ArmRow wide;
  wide.arm = "wide";
  wide.num_planned = 2;
  wide.seeds = {0, 1};
  const std::vector<double> values = {0.25, 0.75};
  wide.specialization = summarize(values);
  wide.max_vio = summary(0.5);
  wide.max_vio_micro_batch = summary(3.0);
  wide.loss = summary(4.125);
  ArmRow reference = wide;
  reference.arm = "reference";
  reference.kind = ArmKind::Ceiling;
  reference.seeds = {0};
  reference.specialization = summary(1.0);
  ArmRow missing;
  missing.arm = "missing";
  missing.kind = ArmKind::Floor;
  missing.num_planned = 1;
  study.arms = {wide, reference, missing};
  study.claims = {{"it is so", {}, Verdict::Holds, "S 1"}, {"it is not", {}, Verdict::Fails, "S 2"}};
  study.notes = {"mind the gap"};
  return study;
}

TEST(StudyText, ShowsArmsClaimsAndNotes) {
  const std::string text = study_text(make_study(), Screen::Plain);
  // t(.975, 1) = 12.7062, deviation .35355: half width 12.7062 * .35355 / sqrt 2 = 3.177.
  EXPECT_THAT(text, HasSubstr("0.500 +- 3.177"));
  EXPECT_THAT(text, HasSubstr("reference  ceiling  1 of 2"));
  EXPECT_THAT(text, HasSubstr("missing    floor    0 of 1"));
  EXPECT_THAT(text, HasSubstr("not ranked"));
  EXPECT_THAT(text, HasSubstr("holds      it is so"));
  EXPECT_THAT(text, HasSubstr("fails      it is not"));
  EXPECT_THAT(text, HasSubstr("mind the gap"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
}

TEST(ProgressText, ShowsWhatRuns) {
  RunProgress running;
  running.name = "wide-seed0";
  running.status = RunStatus::Running;
  running.first_step = 1;
  running.step = 30;
  running.total_steps = 300;
  running.loss = 5.5;
  running.tokens_per_second = 9000.0;
  running.seconds = 10.0;
  RunProgress done;
  done.name = "done-seed0";
  done.status = RunStatus::Done;
  EXPECT_EQ(progress_text({running, done}, Screen::Plain), "1 of 2 runs done; wide-seed0 30/300");
  // 270 steps at a third of a second each.
  EXPECT_THAT(progress_text({running, done}, Screen::Terminal),
              AllOf(HasSubstr("30/300  loss 5.500  9,000 tokens/s  about 1m 30s left"), HasSubstr("1 of 2 runs done")));
  running.first_step = 21;  // resumed: 10 steps in these 10 s
  EXPECT_THAT(progress_text({running}, Screen::Terminal), HasSubstr("about 4m 30s left"));
}

TEST(RunEventText, NamesTheFirstLineOfAFailure) {
  RunProgress run;
  run.name = "wide-seed0";
  run.status = RunStatus::Failed;
  run.error = "exit code 1\nno space left";
  EXPECT_EQ(run_event_text(run, Screen::Plain), "failed  wide-seed0: exit code 1");
  run.status = RunStatus::Skipped;
  EXPECT_EQ(run_event_text(run, Screen::Plain), "");
}

}  // namespace
}  // namespace switchyard
