// The suite on the two implementations that must pass it: our own library, and the textbook that serves as its oracle.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "switchyard/conform/own.hpp"
#include "switchyard/conform/suite.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

std::string text_of(const Result& result) {
  return join_text(result.check->id, " ", result.check->name, " on ", to_string(result.subject), ": ",
                   to_string(result.finding.verdict), ": ", result.finding.message);
}

void expect_no_failure(const Implementation& implementation, const std::vector<Result>& results) {
  for (const Result& result : results) EXPECT_NE(result.finding.verdict, Verdict::Fails) << text_of(result);
  EXPECT_EQ(results.size(), check_table().size() * implementation.capabilities().subjects.size());
}

// Each check holds on some subject, save those that say why they apply to none.
void expect_every_check_applies(const std::vector<Result>& results) {
  std::set<std::string_view> applied;
  for (const Result& result : results) {
    if (result.finding.verdict == Verdict::Holds) applied.insert(result.check->name);
    EXPECT_TRUE(result.finding.verdict != Verdict::DoesNotApply || !result.finding.message.empty()) << text_of(result);
  }
  const std::set<std::string_view> nowhere = {"schedules", "captured-graphs", "multi-token-prediction"};
  for (const Check& check : check_table()) {
    EXPECT_EQ(applied.contains(check.name), !nowhere.contains(check.name)) << check.id << " " << check.name;
  }
}

TEST(Conform, OurOwnLibraryHoldsAndEveryCheckAppliesToIt) {
  const std::vector<Result> results = run_suite(*own_implementation());
  expect_no_failure(*own_implementation(), results);
  expect_every_check_applies(results);
}

TEST(Conform, TheTextbookHolds) { expect_no_failure(Textbook(), run_suite(Textbook())); }

TEST(Conform, AllInvariantsAreThereOnceInOrder) {
  std::vector<std::string> ids;
  std::set<std::string> names;
  for (const Check& check : check_table()) {
    if (ids.empty() || ids.back() != check.id) ids.emplace_back(check.id);
    EXPECT_TRUE(names.insert(join_text(check.id, "/", check.name)).second) << check.name;
    EXPECT_FALSE(check.bug.empty());
    EXPECT_FALSE(check.invariant.empty());
  }
  ASSERT_EQ(ids.size(), 28U);
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(ids[i], join_text("B", i + 1));
}

TEST(Conform, OneInvariantCanBeAskedFor) {
  const std::vector<Result> results = run_suite(Textbook(), "B7");
  EXPECT_EQ(results.size(), Textbook().capabilities().subjects.size());
  for (const Result& result : results) EXPECT_EQ(result.check->id, "B7");
  try {
    static_cast<void>(run_suite(Textbook(), "B77"));
    FAIL() << "no error";
  } catch (const UsageError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("did you mean 'B7'"));
  }
}

// An implementation that can do less is asked for less, and the table says so.
class OneProcess : public Textbook {
 public:
  [[nodiscard]] Capabilities capabilities() const override {
    Capabilities some = Textbook::capabilities();
    some.features = {};
    some.contracts.resize(1);
    return some;
  }
};

TEST(Conform, WhatIsMissingDoesNotApply) {
  for (const Result& result : run_suite(OneProcess(), "B17")) {
    EXPECT_EQ(result.finding.verdict, Verdict::DoesNotApply);
    EXPECT_EQ(result.finding.message, "textbook has no notion of several ranks");
  }
  expect_no_failure(OneProcess(), run_suite(OneProcess()));
}

class Thrower : public Textbook {
 public:
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase>, const StateBytes&) const override {
    throw StateError("out of order");
  }
};

TEST(Conform, AnErrorIsAFailureWithItsText) {
  const std::vector<Result> results = run_suite(Thrower(), "B4");
  ASSERT_FALSE(results.empty());
  EXPECT_EQ(results[0].finding.verdict, Verdict::Fails);
  EXPECT_EQ(results[0].finding.message, "error: out of order");
}

}  // namespace
}  // namespace switchyard::conform
