#include "switchyard/testbed/alike.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

/// A claim about `metric` of two arms that differ by `change`.
TestbedConfig two_arms(const std::string& metric, const std::string& change) {
  TestbedConfig config;
  config.arms = {{"wide", ArmKind::Trained, "", {}, {}}, {"other", ArmKind::Trained, "", {change}, {}}};
  ClaimConfig claim;
  claim.metric = metric;
  claim.arm = "wide";
  claim.against = "other";
  claim.at_least = 0.0;
  config.claims = {claim};
  return config;
}

TEST(CheckClaimsCompare, RefusesDifferencesOfUnlikeMeasures) {
  const auto expanding = [](const std::string& metric, const std::string& change) {
    return [=] { static_cast<void>(expand(two_arms(metric, change))); };
  };
  EXPECT_THAT(expanding("loss", "data.domains=['cpp', 'perl']"),
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("claims[0]: data.domains is [] for wide and [\"cpp\", \"perl\"] for other"),
                                               HasSubstr("difference of their loss says nothing"))));
  for (const char* change : {"data.path=elsewhere", "data.sequence_length=32", "evaluation.sequences_per_domain=7"}) {
    EXPECT_THAT(expanding("loss", change), ThrowsMessage<ConfigError>(HasSubstr("claims[0]")));
    EXPECT_THAT(expanding("specialization", change), ThrowsMessage<ConfigError>(HasSubstr("claims[0]")));
  }
  EXPECT_THAT(expanding("specialization", "model.num_experts=32"), ThrowsMessage<ConfigError>(HasSubstr("model.num_experts")));
  EXPECT_NO_THROW(expanding("loss", "model.num_experts=32")());
  EXPECT_THAT(expanding("max_vio_micro_batch", "data.sequences_per_micro_batch=20"),
              ThrowsMessage<ConfigError>(HasSubstr("data.sequences_per_micro_batch")));
  EXPECT_NO_THROW(expanding("max_vio", "data.sequences_per_micro_batch=20")());
  EXPECT_NO_THROW(expanding("max_vio_micro_batch", "balance.scope=micro_batch")());
}

TEST(CheckClaimsCompare, AsksNothingOfAClaimAboutOneArm) {
  TestbedConfig config = two_arms("loss", "data.domains=['cpp', 'perl']");
  config.claims[0].against.clear();
  EXPECT_NO_THROW(static_cast<void>(expand(config)));
}

TEST(UnlikeNotes, SayWhatDoesNotCompare) {
  const auto notes = [](const std::string& change) {
    TestbedConfig config = two_arms("max_vio", change);
    config.claims.clear();
    return unlike_notes(expand(config));
  };
  EXPECT_THAT(notes("balance.scope=micro_batch"), IsEmpty());
  EXPECT_THAT(notes("data.sequences_per_micro_batch=20"),
              ElementsAre(AllOf(HasSubstr("Arms differ in data.sequences_per_micro_batch ("), HasSubstr("20 for arm other"),
                                HasSubstr("MaxVio of micro-batches does not compare"))));
  EXPECT_THAT(notes("model.num_experts=32"), ElementsAre(HasSubstr("of them only losses compare")));
  EXPECT_THAT(notes("data.domains=['cpp', 'perl']"), ElementsAre(HasSubstr("measured on different text")));
}

TEST(ArmsText, NamesEachOnce) {
  EXPECT_EQ(arms_text({"a", "a"}), "arm a");
  EXPECT_EQ(arms_text({"a", "b", "a"}), "arms a and b");
  EXPECT_EQ(arms_text({"a", "b", "c"}), "arms a, b and c");
}

}  // namespace
}  // namespace switchyard
