// Each check fails on the bug it is there for, and says so with numbers.

#include "mutants.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "switchyard/conform/suite.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

const Check& check_of(const Mutant& mutant) {
  for (const Check& check : check_table()) {
    if (check.id == mutant.id && check.name == mutant.check) return check;
  }
  throw UsageError(join_text("no check ", mutant.id, " ", mutant.check));
}

class EachMutant : public testing::TestWithParam<Mutant> {};

TEST_P(EachMutant, IsCaughtByTheCheckMeantForIt) {
  const Mutant& mutant = GetParam();
  const Finding finding = run_check(*mutant.make(), check_of(mutant), mutant.subject).finding;
  EXPECT_EQ(finding.verdict, Verdict::Fails) << mutant.bug;
  EXPECT_FALSE(finding.message.empty());
  // Of the bug itself, not of an accident on the way to it.
  EXPECT_THAT(finding.message, testing::Not(testing::StartsWith("error:")));
  RecordProperty("message", finding.message);
  EXPECT_EQ(run_check(*mutant.right(), check_of(mutant), mutant.subject).finding.verdict, Verdict::Holds);
}

std::string name_of(const testing::TestParamInfo<Mutant>& mutant) {
  std::string name = join_text(mutant.param.id, "_", mutant.param.bug);
  std::replace_if(
      name.begin(), name.end(), [](char letter) { return std::isalnum(static_cast<unsigned char>(letter)) == 0; }, '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Mutants, EachMutant, testing::ValuesIn(mutants()), name_of);

TEST(Mutants, ThereIsOneForEveryCheckThatApplies) {
  const std::set<std::string> nowhere = {"schedules", "captured-graphs", "multi-token-prediction"};
  std::set<std::string> caught;
  for (const Mutant& mutant : mutants()) caught.insert(mutant.check);
  for (const Check& check : check_table()) {
    const std::string name(check.name);
    EXPECT_NE(caught.contains(name), nowhere.contains(name)) << check.id << " " << name;
  }
}

Finding found(const std::string& bug) {
  for (const Mutant& mutant : mutants()) {
    if (mutant.bug == bug) return run_check(*mutant.make(), check_of(mutant), mutant.subject).finding;
  }
  throw UsageError("no mutant " + bug);
}

TEST(Mutants, MessagesNameTheScale) {
  EXPECT_THAT(found("gradient over the number of ranks").message, testing::HasSubstr("0.5 times what it should be"));
  EXPECT_THAT(found("no division by K").message, testing::HasSubstr("at uniform probabilities and K = 2: 2, expected 1"));
  EXPECT_THAT(found("layers pooled").message, testing::HasSubstr(": 1, expected 1.98"));
}

}  // namespace
}  // namespace switchyard::conform
