// Where the time of steps went, on events written by hand.

#include "switchyard/train/profile.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using enum ProfileKind;

ProfileEvent event(const std::string& name, ProfileKind kind, int64_t begin, int64_t end, int64_t sequence = -1,
                   int64_t flops = 0) {
  return {.name = name, .kind = kind, .thread = 7, .begin_ns = begin, .end_ns = end, .sequence = sequence, .flops = flops};
}

PartTime part_of(const ProfileReport& report, const std::string& name) {
  for (const PartTime& part : report.parts) {
    if (part.name == name) return part;
  }
  ADD_FAILURE() << "no part " << name;
  return {};
}

KernelTime kernel_of(const ProfileReport& report, const std::string& name) {
  for (const KernelTime& kernel : report.kernels) {
    if (kernel.name == name) return kernel;
  }
  ADD_FAILURE() << "no kernel " << name;
  return {};
}

// 100 ns: attention's forward 10-30 with a product of 12; experts 30-60; backward of a node of each.
std::vector<ProfileEvent> one_step() {
  return {event(kOtherPart, Part, 0, 100, 0),
          event("attention", Part, 10, 30, 1),
          event("mm", Kernel, 12, 24, 1, 2400),
          event("experts", Part, 30, 60, 5),
          event("mm", Kernel, 35, 45, 5, 2000),
          event("engine", Backward, 60, 75, 6),
          event("ExpertsBackward", Backward, 62, 75, 6),
          event("mm", Kernel, 63, 73, -1, 2000),
          event("AttentionBackward", Backward, 75, 95, 4)};
}

TEST(Profile, TimesArePutWhereTheForwardWas) {
  const ProfileReport report = summarize_profile(one_step(), 1);
  EXPECT_DOUBLE_EQ(report.seconds, 100e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "attention").forward, 20e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "attention").backward, 20e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "experts").forward, 30e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "experts").backward, 15e-9);
  EXPECT_DOUBLE_EQ(part_of(report, kOtherPart).forward, 15e-9);  // 0-10 and 95-100
  EXPECT_EQ(report.parts.front().name, "experts");
}

TEST(Profile, PartsAddUpToTheStepAndKernelsHaveTheirOwnTimeOnly) {
  const ProfileReport report = summarize_profile(one_step(), 1);
  double sum = 0.0;
  for (const PartTime& part : report.parts) sum += part.total();
  EXPECT_NEAR(sum, report.seconds, 1e-15);
  EXPECT_DOUBLE_EQ(kernel_of(report, "mm").seconds, 32e-9);
  EXPECT_DOUBLE_EQ(kernel_of(report, "mm").calls, 3.0);
  EXPECT_DOUBLE_EQ(kernel_of(report, "mm").flops, 6400.0);
  EXPECT_DOUBLE_EQ(kernel_of(report, "ExpertsBackward").seconds, 3e-9);
  EXPECT_DOUBLE_EQ(kernel_of(report, "engine").seconds, 2e-9);
}

TEST(Profile, NumbersArePerStepAndWhatLiesBetweenStepsIsLeftOut) {
  std::vector<ProfileEvent> events = one_step();
  for (ProfileEvent again : one_step()) {
    again.begin_ns += 500;
    again.end_ns += 500;
    if (again.sequence >= 0) again.sequence += 50;
    events.push_back(again);
  }
  events.push_back(event("experts", Part, 200, 400, 7));  // an evaluation runs the model outside of steps
  events.push_back(event("evaluation", Kernel, 210, 390));
  ProfileEvent elsewhere = event("mm", Kernel, 20, 90);
  elsewhere.thread = 8;
  events.push_back(elsewhere);
  const ProfileReport report = summarize_profile(events, 2);
  EXPECT_DOUBLE_EQ(report.seconds, 100e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "experts").total(), 45e-9);
  EXPECT_DOUBLE_EQ(kernel_of(report, "mm").seconds, 32e-9);
  EXPECT_THAT(to_json(report), testing::Not(testing::HasSubstr("evaluation")));
}

TEST(Profile, AForwardThatRunsAgainInBackwardCountsThere) {
  std::vector<ProfileEvent> events = {event(kOtherPart, Part, 0, 100, 0), event("router", Part, 0, 20, 1),
                                      event("Checkpoint", Backward, 50, 90, 1), event("experts", Part, 55, 85, 9)};
  const ProfileReport report = summarize_profile(events, 1);
  EXPECT_DOUBLE_EQ(part_of(report, "experts").backward, 30e-9);
  EXPECT_DOUBLE_EQ(part_of(report, "router").backward, 10e-9);
}

TEST(Profile, SharesOfPeakAndWhatCannotBe) {
  ProfileReport report = summarize_profile(one_step(), 1);
  EXPECT_EQ(report.share_of_peak(), 0.0);
  report.flops = 10.0;
  report.peak = 1e9;
  EXPECT_DOUBLE_EQ(report.share_of_peak(), 0.1);
  EXPECT_THROW((void)summarize_profile({event("mm", Kernel, 0, 1)}, 1), StateError);
  EXPECT_THROW((void)summarize_profile({event("experts", Part, 0, 1)}, 1), StateError);
  EXPECT_THROW((void)summarize_profile(one_step(), 0), UsageError);
}

}  // namespace
}  // namespace switchyard
