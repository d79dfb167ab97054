#include "switchyard/testbed/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

constexpr const char* kTwoArms = R"(
name = "two"
seeds = [1, 0]
[run]
steps = 7
[run.balance]
coefficient = 0.5
[[arms]]
name = "wide"
overrides = ["balance.scope=optimizer_batch"]
[[arms]]
name = "narrow"
kind = "floor"
overrides = ["balance.scope=micro_batch", "balance.coefficient=0.25"]
seeds = [1]
)";

TestbedConfig read_text(const std::string& text) {
  TestbedConfig config;
  read_config(parse_config_text(text, "test.toml"), config);
  return config;
}

std::string read_error(const std::string& text) {
  try {
    (void)expand(read_text(text));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

std::vector<std::string> names(const std::vector<PlannedRun>& runs) {
  std::vector<std::string> result;
  for (const PlannedRun& run : runs) result.push_back(run.name);
  return result;
}

TEST(TestbedExpand, GoesSeedBySeedInTheOrderOfArms) {
  EXPECT_THAT(names(expand(read_text(kTwoArms))), ElementsAre("wide-seed0", "wide-seed1", "narrow-seed1"));
}

TEST(TestbedExpand, LaysOverridesOverTheSharedRun) {
  const std::vector<PlannedRun> runs = expand(read_text(kTwoArms));
  EXPECT_EQ(to_string(runs[0].config.balance.scope), "optimizer_batch");
  EXPECT_EQ(runs[0].config.balance.coefficient, 0.5);
  EXPECT_EQ(to_string(runs[2].config.balance.scope), "micro_batch");
  EXPECT_EQ(runs[2].config.balance.coefficient, 0.25);
  for (const PlannedRun& run : runs) EXPECT_EQ(run.config.steps, 7) << run.name;
}

TEST(TestbedExpand, PairsSeedsAcrossArms) {
  const std::vector<PlannedRun> runs = expand(read_text(kTwoArms));
  EXPECT_EQ(runs[1].config.seed, 1);
  EXPECT_EQ(runs[2].config.seed, 1);
  EXPECT_EQ(runs[1].config.name, "wide-seed1");
  EXPECT_EQ(runs[1].config.arm, "wide");
  // All that differs between the arms of one seed is what the overrides name.
  std::vector<std::string> keys;
  for (const ConfigDifference& difference : compare(runs[1].config, runs[2].config)) keys.push_back(difference.key);
  EXPECT_THAT(keys, ::testing::UnorderedElementsAre("name", "arm", "balance.scope", "balance.coefficient"));
}

TEST(TestbedConfig, IsTheSameAfterWritingAndReading) {
  TestbedConfig config = read_text(kTwoArms);
  config.claims.push_back({"", "loss", "wide", "narrow", -0.5, std::numeric_limits<double>::infinity()});
  EXPECT_EQ(read_text(to_toml(config)), config);
}

TEST(TestbedConfig, ReadsABaseUnderTheRunTable) {
  const test::ScratchFolder scratch;
  std::ofstream(scratch.path() / "base.toml") << "steps = 5\n[model]\nnum_experts = 8\n";
  std::ofstream(scratch.path() / "testbed.toml") << "base = \"base.toml\"\n[run]\nsteps = 9\n[[arms]]\nname = \"a\"\n";
  const TestbedConfig config = read_testbed_config(scratch.path() / "testbed.toml", {"run.balance.coefficient=0.75"});
  EXPECT_EQ(config.run.steps, 9);
  EXPECT_EQ(config.run.model.num_experts, 8);
  EXPECT_EQ(config.run.balance.coefficient, 0.75);
  EXPECT_THAT([&] { (void)read_testbed_config(scratch.path() / "testbed.toml", {"base=none.toml"}); },
              ThrowsMessage<ConfigError>(HasSubstr("no file")));
  EXPECT_THAT([&] { (void)read_testbed_config(scratch.path() / "testbed.toml", {"run.seed=7"}); },
              ThrowsMessage<ConfigError>(HasSubstr("run.seed is 7, but the testbed sets the seed of each run")));
  EXPECT_THAT([&] { (void)read_testbed_config(scratch.path() / "testbed.toml", {"run.arm=b"}); },
              ThrowsMessage<ConfigError>(HasSubstr("arms are named in [[arms]]")));
  std::ofstream(scratch.path() / "seven.toml") << "seed = 7\n";
  EXPECT_THAT([&] { (void)read_testbed_config(scratch.path() / "testbed.toml", {"base=seven.toml"}); },
              ThrowsMessage<ConfigError>(HasSubstr("seed is 7, but the testbed sets the seed of each run")));
  std::ofstream(scratch.path() / "resolved.toml") << to_toml(config);
  EXPECT_EQ(read_testbed_config(scratch.path() / "resolved.toml").run, config.run);
}

TEST(TestbedConfig, NamesTheArmWhoseOverrideIsWrong) {
  const std::string error = read_error("[[arms]]\nname = \"odd\"\noverrides = [\"balance.scop=micro_batch\"]\n");
  EXPECT_THAT(error, HasSubstr("arm 'odd'"));
  EXPECT_THAT(error, HasSubstr("did you mean 'scope'?"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"odd\"\noverrides = [\"balance.scope=microbatch\"]\n"),
              HasSubstr("did you mean 'micro_batch'?"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"odd\"\noverrides = [\"steps=0\"]\n"), StartsWith("arm 'odd': steps is 0"));
}

TEST(TestbedConfig, RefusesWhatCannotBeRun) {
  EXPECT_THAT(read_error("seeds = [0]\n"), HasSubstr("no arms"));
  EXPECT_THAT(read_error("seeds = []\n[[arms]]\nname = \"a\"\n"), HasSubstr("seeds = []"));
  EXPECT_THAT(read_error("seeds = [2, 2]\n[[arms]]\nname = \"a\"\n"), HasSubstr("given twice"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\noverrides = [\"seed = 3\"]\n"), HasSubstr("'seed' is set by the testbed"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\noverrides = ['\"seed\"=3']\n"), HasSubstr("'seed' is set by the testbed"));
  EXPECT_THAT(read_error("seeds = [-1]\n[[arms]]\nname = \"a\"\n"), HasSubstr("negative"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\n[[arms]]\nname = \"a\"\n"), HasSubstr("second arm named 'a'"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"../a\"\n"), HasSubstr("names folders"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\nkind = \"celing\"\n"), HasSubstr("did you mean 'ceiling'?"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\noverrides = [\"seed=3\"]\n"), HasSubstr("set by the testbed"));
  EXPECT_THAT(read_error("baseline = \"b\"\n[[arms]]\nname = \"a\"\n"), HasSubstr("unknown arm 'b'"));
}

TEST(TestbedConfig, RefusesClaimsThatNothingCanDecide) {
  const std::string arms = "[[arms]]\nname = \"a\"\nseeds = [0]\n[[arms]]\nname = \"b\"\nseeds = [1]\n[[claims]]\narm = \"a\"\n";
  EXPECT_THAT(read_error(arms), HasSubstr("would hold for anything"));
  EXPECT_THAT(read_error(arms + "at_least = 2\nat_most = 1\n"), HasSubstr("is above at_most"));
  EXPECT_THAT(read_error(arms + "at_least = nan\n"), HasSubstr("is nan; expected a number"));
  EXPECT_THAT(read_error(arms + "at_least = inf\n"), HasSubstr("expected finite bounds"));
  EXPECT_THAT(read_error(arms + "at_most = -inf\n"), HasSubstr("expected finite bounds"));
  EXPECT_THAT(read_error("[[arms]]\nname = \"a\"\n[[claims]]\nat_least = 2\n"), HasSubstr("unknown arm ''; known: a"));
  EXPECT_THAT(read_error(arms + "at_least = 2\nagainst = \"a\"\n"), HasSubstr("is the arm itself"));
  EXPECT_THAT(read_error(arms + "at_least = 2\nagainst = \"c\"\n"), HasSubstr("unknown arm 'c'"));
  EXPECT_THAT(read_error(arms + "at_least = 2\nagainst = \"b\"\n"), HasSubstr("no seed in common"));
  EXPECT_THAT(read_error(arms + "at_least = 2\nmetric = \"specialisation\"\n"), HasSubstr("did you mean 'specialization'?"));
  EXPECT_EQ(read_error(arms + "at_least = 2\n"), "no error");
}

}  // namespace
}  // namespace switchyard
