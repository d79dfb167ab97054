// What `switchyard conform` prints and returns, on our own library and on results that fail.

#include "switchyard/cli/conform_verb.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include <nlohmann/json.hpp>

namespace switchyard {
namespace {

using testing::HasSubstr;

struct Screenful {
  std::ostringstream out;
  std::ostringstream err;
  Session session{out, err};
};

std::vector<conform::Result> one_failure() {
  const conform::Check* check = &conform::check_table().front();
  return {{check, {"lbl", {.kind = ScopeKind::Prefix}}, {conform::Verdict::Fails, "0.5 times"}},
          {check, {"z_loss", {}}, {conform::Verdict::DoesNotApply, "no ranks"}}};
}

TEST(ConformVerb, AFailureIsExitCodeOneAndSaysWhatMustHoldAndWhereItDidNot) {
  Screenful screen;
  EXPECT_EQ(print_conformance(one_failure(), OutputFormat::Text, screen.session), kExitFailed);
  const std::string text = screen.out.str();
  EXPECT_THAT(text, HasSubstr("FAILS"));
  EXPECT_THAT(text, HasSubstr("B1 rank-scale: 0.5 times [lbl/prefix]"));
  EXPECT_THAT(text, HasSubstr("must hold: D ranks with the same tokens have the gradient of one"));
  EXPECT_THAT(text, HasSubstr("Megatron-LM #3672"));
  EXPECT_THAT(text, HasSubstr("B1 rank-scale: no ranks [z_loss]"));
  EXPECT_THAT(text, HasSubstr("Other methods"));
  EXPECT_THAT(text, HasSubstr("0 hold, 1 fail, 1 do not apply"));
}

TEST(ConformVerb, JsonHasTheSame) {
  Screenful screen;
  EXPECT_EQ(print_conformance(one_failure(), OutputFormat::Json, screen.session), kExitFailed);
  const auto items = nlohmann::json::parse(screen.out.str());
  ASSERT_EQ(items.size(), 2U);
  EXPECT_EQ(items[0]["id"], "B1");
  EXPECT_EQ(items[0]["verdict"], "fails");
  EXPECT_EQ(items[0]["subject"], "lbl/prefix");
  EXPECT_EQ(items[1]["verdict"], "does not apply");
}

TEST(ConformVerb, WeHold) {
  Screenful screen;
  EXPECT_EQ(run_cli({"conform", "--only", "B2"}, screen.session), kExitDone);
  EXPECT_THAT(screen.out.str(), HasSubstr("0 fail"));
}

TEST(ConformVerb, AnUnknownInvariantIsWrongUse) {
  Screenful screen;
  EXPECT_EQ(run_cli({"conform", "--only", "B77"}, screen.session), kExitWrongUse);
  EXPECT_THAT(screen.err.str(), HasSubstr("did you mean 'B7'?"));
}

}  // namespace
}  // namespace switchyard
