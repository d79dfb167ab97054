// The learning rate: hand-worked values, ends, and order.

#include "switchyard/train/schedule.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

OptimizerConfig make_config(ScheduleKind kind) {
  OptimizerConfig config;
  config.learning_rate = 0.8;
  config.warmup_steps = 4;
  config.min_ratio = 0.25;
  config.schedule = kind;
  return config;
}

TEST(Schedule, WarmUpRisesInEqualPartsToThePeak) {
  for (const ScheduleKind kind : {ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd}) {
    const OptimizerConfig config = make_config(kind);
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 0, 12), 0.2);
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 1, 12), 0.4);
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 2, 12), 0.6);
    EXPECT_DOUBLE_EQ(learning_rate_at(config, 3, 12), 0.8);
  }
}

TEST(Schedule, CosineByHand) {
  const OptimizerConfig config = make_config(ScheduleKind::Cosine);
  // Eight steps of decay: after four of them half way between the peak .8 and the floor .2, after the last the floor.
  EXPECT_NEAR(learning_rate_at(config, 7, 12), 0.5, 1e-15);
  EXPECT_NEAR(learning_rate_at(config, 11, 12), 0.2, 1e-15);
  // Two of eight: .2 + .6 (1 + cos(45 degrees)) / 2.
  EXPECT_NEAR(learning_rate_at(config, 5, 12), 0.2 + 0.3 * (1.0 + 0.70710678118654752), 1e-15);
}

TEST(Schedule, WsdIsStableThenFallsInAStraightLine) {
  OptimizerConfig config = make_config(ScheduleKind::Wsd);
  config.decay_fraction = 0.25;  // 3 of 12 steps
  for (int64_t step = 3; step < 9; ++step) EXPECT_DOUBLE_EQ(learning_rate_at(config, step, 12), 0.8);
  EXPECT_NEAR(learning_rate_at(config, 9, 12), 0.6, 1e-15);
  EXPECT_NEAR(learning_rate_at(config, 10, 12), 0.4, 1e-15);
  EXPECT_NEAR(learning_rate_at(config, 11, 12), 0.2, 1e-15);
}

TEST(Schedule, WsdDecaysAfterTheWarmUpOnly) {
  OptimizerConfig config = make_config(ScheduleKind::Wsd);
  config.decay_fraction = 1.0;  // the whole run, of which 4 steps are warm-up
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 3, 12), 0.8);
  EXPECT_NEAR(learning_rate_at(config, 4, 12), 0.8 * (1.0 - 0.75 / 8), 1e-15);
}

TEST(Schedule, WsdWithoutDecayStaysAtThePeak) {
  OptimizerConfig config = make_config(ScheduleKind::Wsd);
  config.decay_fraction = 0.0;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 11, 12), 0.8);
}

TEST(Schedule, ConstantStaysAtThePeak) {
  EXPECT_DOUBLE_EQ(learning_rate_at(make_config(ScheduleKind::Constant), 11, 12), 0.8);
}

TEST(Schedule, RunShorterThanItsWarmUpNeverPassesThePeak) {
  OptimizerConfig config = make_config(ScheduleKind::Cosine);
  config.warmup_steps = 100;
  EXPECT_DOUBLE_EQ(learning_rate_at(config, 2, 3), 0.8 * 3.0 / 100.0);
}

TEST(Schedule, StaysBetweenFloorAndPeakAndNeverRisesAfterWarmUp) {
  EXPECT_TRUE(rc::check([](int) {
    OptimizerConfig config = make_config(*rc::gen::element(ScheduleKind::Constant, ScheduleKind::Cosine, ScheduleKind::Wsd));
    config.warmup_steps = *rc::gen::inRange<int64_t>(0, 20);
    config.min_ratio = *rc::gen::inRange(0, 101) / 100.0;
    config.decay_fraction = *rc::gen::inRange(0, 101) / 100.0;
    const int64_t total = *rc::gen::inRange<int64_t>(1, 60);
    double previous = config.learning_rate;
    for (int64_t step = config.warmup_steps; step < total; ++step) {
      const double rate = learning_rate_at(config, step, total);
      RC_ASSERT(rate <= previous + 1e-15);
      RC_ASSERT(rate >= config.learning_rate * config.min_ratio - 1e-15);
      previous = rate;
    }
  }));
}

TEST(Schedule, RefusesStepsOutsideTheRun) {
  const OptimizerConfig config = make_config(ScheduleKind::Cosine);
  EXPECT_THROW((void)learning_rate_at(config, 12, 12), UsageError);
  EXPECT_THROW((void)learning_rate_at(config, -1, 12), UsageError);
}

TEST(OptimizerConfig, NamesTheKeyOfABadValue) {
  OptimizerConfig config;
  config.beta2 = 1.0 - 1e-9;  // 1 in fp32
  try {
    config.validate("run.toml:7: optimizer");
    FAIL() << "beta2 = 1 - 1e-9 was taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("run.toml:7: optimizer.beta2 is 0.999999999; expected"));
  }
  config = OptimizerConfig();
  config.moments = MomentType::BFloat16;
  EXPECT_NO_THROW(config.validate("run.toml:7: optimizer"));
  config.beta2 = 0.999;  // a change of 1 in 1,000 is nothing in bf16
  try {
    config.validate("run.toml:7: optimizer");
    FAIL() << "bf16 moments were taken with beta2 = .999";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("optimizer.moments is bfloat16; expected full for beta1 0.9 and beta2 0.999"));
  }
  ScheduleKind kind{};
  EXPECT_THROW(parse("cosin", kind), ConfigError);
  parse("wsd", kind);
  EXPECT_EQ(kind, ScheduleKind::Wsd);
  EXPECT_EQ(to_string(kind), "wsd");
}

}  // namespace
}  // namespace switchyard
