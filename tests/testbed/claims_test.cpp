#include "switchyard/testbed/claims.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "switchyard/testbed/config.hpp"
#include "switchyard/testbed/number_text.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

RunResultRow row(const std::string& arm, int64_t seed, std::optional<double> specialization) {
  RunResultRow result{arm + std::to_string(seed), arm, seed, std::nullopt};
  if (specialization) result.evaluation.emplace().specialization = *specialization;
  return result;
}

ClaimConfig at_least(double bound, const std::string& against = "narrow") {
  ClaimConfig claim;
  claim.arm = "wide";
  claim.against = against;
  claim.at_least = bound;
  return claim;
}

TEST(CheckClaim, HoldsOnlyWhereEverySeedDoes) {
  const std::vector<RunResultRow> rows = {row("wide", 0, 0.5), row("narrow", 0, 0.25), row("wide", 1, 0.5), row("narrow", 1, 0.375)};
  EXPECT_EQ(check_claim(at_least(0.125), rows).verdict, Verdict::Holds);
  const ClaimResult result = check_claim(at_least(0.1875), rows);
  EXPECT_EQ(result.verdict, Verdict::Fails);
  ASSERT_EQ(result.seeds.size(), 2U);
  EXPECT_EQ(result.seeds[0].value, 0.25);
  EXPECT_EQ(result.seeds[0].verdict, Verdict::Holds);
  EXPECT_EQ(result.seeds[1].value, 0.125);
  EXPECT_EQ(result.seeds[1].verdict, Verdict::Fails);
}

TEST(CheckClaim, ComparesEqualSeedsOnly) {
  const std::vector<RunResultRow> rows = {row("wide", 0, 0.5), row("wide", 1, 0.1), row("narrow", 0, 0.2)};
  const ClaimResult result = check_claim(at_least(0.25), rows);
  ASSERT_EQ(result.seeds.size(), 1U);
  EXPECT_EQ(result.verdict, Verdict::Holds);
}

TEST(CheckClaim, IsUndecidedWithoutAResult) {
  EXPECT_EQ(check_claim(at_least(0.1), {row("wide", 0, 0.5), row("narrow", 0, std::nullopt)}).verdict, Verdict::Undecided);
  EXPECT_EQ(check_claim(at_least(0.1), {}).verdict, Verdict::Undecided);
  // A seed that fails is enough, whatever the missing one would say.
  const std::vector<RunResultRow> rows = {row("wide", 0, 0.0), row("narrow", 0, 0.0), row("wide", 1, 0.5), row("narrow", 1, std::nullopt)};
  EXPECT_EQ(check_claim(at_least(0.1), rows).verdict, Verdict::Fails);
  EXPECT_THAT(check_claim(at_least(0.1), rows).detail, HasSubstr("no result (seed 1)"));
}

TEST(CheckClaim, TakesTheMetricItselfWithoutAnotherArm) {
  ClaimConfig claim = at_least(0.4, "");
  claim.at_most = 0.6;
  EXPECT_EQ(check_claim(claim, {row("wide", 0, 0.5)}).verdict, Verdict::Holds);
  EXPECT_EQ(check_claim(claim, {row("wide", 0, 0.7)}).verdict, Verdict::Fails);
  EXPECT_THAT(check_claim(claim, {row("wide", 0, 0.5)}).text, HasSubstr("specialization of wide is at least 0.4 and at most 0.6"));
}

TEST(CheckClaim, SaysValueAndBoundsSoThatTheVerdictFollows) {
  const auto detail = [](double value, double bound) { return check_claim(at_least(bound, ""), {row("wide", 0, value)}).detail; };
  EXPECT_EQ(detail(0.0002334, -0.00045), "specialization 0.000 (seed 0); asked: at least -0.00045");
  EXPECT_EQ(detail(0.0996, 0.1), "specialization 0.0996 (seed 0); asked: at least 0.1");  // three decimals would read .100
  EXPECT_EQ(detail(-0.0004501, -0.00045), "specialization -0.0005 (seed 0); asked: at least -0.00045");
  EXPECT_EQ(detail(0.5, 0.1), "specialization 0.500 (seed 0); asked: at least 0.1");
}

TEST(CheckClaim, FailsOnAValueThatIsNotFinite) {
  const double nothing = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(check_claim(at_least(0.1, ""), {row("wide", 0, nothing)}).verdict, Verdict::Fails);
  ClaimConfig open = at_least(0.1, "");
  EXPECT_EQ(check_claim(open, {row("wide", 0, std::numeric_limits<double>::infinity())}).verdict, Verdict::Fails);
}

TEST(ClaimMetric, ReadsEachFieldOfTheEvaluation) {
  EvaluationRecord record;
  record.specialization = 1;
  record.purity = 2;
  record.agreement = 3;
  record.margin = 4;
  record.loss = 5;
  record.perplexity = 6;
  record.global.max_vio = 7;
  record.micro_batch.max_vio = 8;
  record.global.utilization = 9;
  record.global.dead_experts = 10;
  record.global.entropy = 11;
  double expected = 1;
  for (const std::string& name : claim_metric_names()) EXPECT_EQ(claim_metric(record, name), expected++) << name;
  EXPECT_THROW((void)claim_metric(record, "los"), UsageError);
}

TEST(NumberText, IsFixedPointWithoutMinusZero) {
  EXPECT_EQ(number_text(0.4186, 3), "0.419");
  EXPECT_EQ(number_text(-0.0001, 3), "0.000");
  EXPECT_EQ(number_text(-1.5, 1), "-1.5");
  EXPECT_EQ(number_text(std::numeric_limits<double>::infinity(), 1), "-");
}

}  // namespace
}  // namespace switchyard
