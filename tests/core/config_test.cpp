#include "switchyard/core/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "switchyard/core/scope.hpp"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using testing::ThrowsMessage;

struct Balance {
  double lambda = 0.01;
  Scope scope;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("lambda", lambda, "coefficient of the loss");
    visit("scope", scope, "balancing scope");
  }
  void validate(const std::string& where) const {
    SWITCHYARD_CHECK(lambda >= 0.0, ConfigError, where, ": lambda must be at least 0");
  }
};

struct Arm {
  std::string name;
  Balance balance;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("name", name, "label");
    visit("balance", balance, "balancing loss");
  }
};

struct RunConfig {
  int64_t width = 256;
  bool tied = false;
  std::string router = "top_k";
  std::vector<int64_t> seeds = {1};
  std::vector<std::string> tags;
  std::map<std::string, double> mix = {{"law", 1.0}};
  Balance balance;
  std::vector<Arm> arms;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("width", width, "model width D");
    visit("tied", tied, "tied embeddings");
    visit("router", router, "router");
    visit("seeds", seeds, "seeds");
    visit("tags", tags, "tags");
    visit("mix", mix, "share of each domain");
    visit("balance", balance, "balancing loss");
    visit("arms", arms, "arms");
  }
};

RunConfig read_run(std::string_view text, const std::vector<std::string>& overrides = {}) {
  RunConfig run;
  read_config(parse_config_text(text, "demo.toml", overrides), run);
  return run;
}

auto fails_with(const testing::Matcher<std::string>& matcher) { return ThrowsMessage<ConfigError>(matcher); }

TEST(Config, ReadsEveryKindOfField) {
  const RunConfig run = read_run(R"toml(
width = 512
tied = true
router = "random"
seeds = [1, 2, 3]
tags = ["a", "b"]
mix = { law = 0.5, math = 2 }

[balance]
lambda = 1
scope = "sequences(4)"

[[arms]]
name = "wide"
[arms.balance]
scope = "optimizer_batch"

[[arms]]
name = "narrow"
balance.scope = "micro_batch"
)toml");
  EXPECT_EQ(run.width, 512);
  EXPECT_TRUE(run.tied);
  EXPECT_EQ(run.router, "random");
  EXPECT_THAT(run.seeds, ElementsAre(1, 2, 3));
  EXPECT_THAT(run.tags, ElementsAre("a", "b"));
  EXPECT_EQ(run.mix, (std::map<std::string, double>{{"law", 0.5}, {"math", 2.0}}));
  EXPECT_EQ(run.balance.lambda, 1.0);
  EXPECT_EQ(run.balance.scope.num_sequences, 4);
  ASSERT_EQ(run.arms.size(), 2U);
  EXPECT_EQ(run.arms[0].name, "wide");
  EXPECT_EQ(run.arms[1].balance.scope.kind, ScopeKind::MicroBatch);
}

TEST(Config, KeepsWhatIsNotGiven) {
  const RunConfig run = read_run("[balance]\nscope = \"ranks\"");
  EXPECT_EQ(run.width, 256);
  EXPECT_EQ(run.balance.lambda, 0.01);
  EXPECT_THAT(run.seeds, ElementsAre(1));
}

TEST(Config, UnknownKeyNamesPlaceNearestAndValidKeys) {
  EXPECT_THAT([] { read_run("\n\n[balance]\nlamda = 1\n"); },
              fails_with("demo.toml:4: balance.lamda: unknown key 'lamda' (did you mean 'lambda'?); known: lambda, scope"));
  EXPECT_THAT([] { read_run("[[arms]]\nname = \"a\"\n[[arms]]\nnom = \"b\""); },
              fails_with(HasSubstr("demo.toml:4: arms[1].nom: unknown key 'nom' (did you mean 'name'?)")));
  EXPECT_THAT([] { read_run("[balanse]\nlambda = 1"); },
              fails_with(HasSubstr("demo.toml:1: balanse: unknown key 'balanse' (did you mean 'balance'?)")));
}

TEST(Config, ListsAllUnknownKeysOfASection) {
  EXPECT_THAT([] { read_run("one = 1\ntwo = 2"); },
              fails_with(AllOf(HasSubstr("demo.toml:1: one"), HasSubstr("\ndemo.toml:2: two"))));
}

TEST(Config, WrongTypeNamesPlaceGivenAndExpected) {
  EXPECT_THAT([] { read_run("\nwidth = 3.0"); }, fails_with("demo.toml:2: width: expected an integer, given float 3.0"));
  EXPECT_THAT([] { read_run("width = \"3\""); }, fails_with(HasSubstr("expected an integer, given string \"3\"")));
  EXPECT_THAT([] { read_run("tied = 1"); }, fails_with(HasSubstr("expected true or false, given integer 1")));
  EXPECT_THAT([] { read_run("router = true"); }, fails_with(HasSubstr("expected a string (in quotes), given boolean true")));
  EXPECT_THAT([] { read_run("router = 1979-05-27"); }, fails_with(HasSubstr("given a date or time")));
  EXPECT_THAT([] { read_run("seeds = 3"); }, fails_with(HasSubstr("seeds: expected an array, given integer 3")));
  EXPECT_THAT([] { read_run("seeds = [1, 2.5]"); },
              fails_with("demo.toml:1: seeds[1]: expected an integer, given float 2.5"));
  EXPECT_THAT([] { read_run("[mix]\nlaw = \"a\""); }, fails_with(StartsWith("demo.toml:2: mix.law: expected a number")));
  EXPECT_THAT([] { read_run("balance = 3"); },
              fails_with("demo.toml:1: balance: expected a table, [balance], given integer 3"));
  EXPECT_THAT([] { read_run("[arms]\nname = \"a\""); },
              fails_with("demo.toml:1: arms: expected an array of tables, [[arms]], given a table"));
  EXPECT_THAT([] { read_run("arms = [3]"); }, fails_with(HasSubstr("arms[0]: expected an array of tables")));
  EXPECT_THAT([] { read_run("[balance]\nscope = 3"); }, fails_with(StartsWith("demo.toml:2: balance.scope: expected a str")));
}

TEST(Config, DoubleTakesAnIntegerThatItHoldsExactly) {
  EXPECT_EQ(read_run("[balance]\nlambda = 9007199254740992").balance.lambda, 9007199254740992.0);
  EXPECT_THAT([] { read_run("[balance]\nlambda = 9007199254740993"); }, fails_with(HasSubstr("holds exactly")));
}

TEST(Config, IntegerTakesItsWholeRange) {
  EXPECT_EQ(read_run("width = -9223372036854775808").width, INT64_MIN);
  EXPECT_EQ(read_run("width = 9223372036854775807").width, INT64_MAX);
  EXPECT_THROW(read_run("width = 9223372036854775808"), ConfigError);
}

TEST(Config, ParsedFieldNamesItsPlace) {
  EXPECT_THAT([] { read_run("[balance]\nscope = \"rank\""); },
              fails_with(AllOf(StartsWith("demo.toml:2: balance.scope: unknown scope 'rank' (did you mean 'ranks'?)"))));
}

TEST(Config, ValidateHearsWhereTheSectionIs) {
  EXPECT_THAT([] { read_run("\n[balance]\nlambda = -1"); },
              fails_with("demo.toml:2: balance: lambda must be at least 0"));
}

TEST(Config, BadTomlNamesFileAndLine) {
  EXPECT_THAT([] { read_run("width = 1\nwidth = 2"); }, fails_with(StartsWith("demo.toml:2: not valid TOML: ")));
  EXPECT_THAT([] { read_run("a\n= 1"); }, fails_with(StartsWith("demo.toml:1: not valid TOML: ")));
}

TEST(Config, FileIsReadAndNamed) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "switchyard_config_test.toml";
  std::ofstream(path) << "widht = 3\n";
  const ConfigNode node = parse_config_file(path, {"tied=true"});
  EXPECT_EQ(node.where("widht"), path.string() + ":1: widht");
  EXPECT_EQ(node.where(""), path.string());
  EXPECT_THAT(node.keys(), ElementsAre("tied", "widht"));
  std::filesystem::remove(path);
  EXPECT_THAT([&] { (void)parse_config_file(path); }, fails_with(AllOf(HasSubstr(path.string()), HasSubstr("No such file"))));
}

TEST(Override, ReplacesAndAddsValues) {
  const RunConfig run = read_run("width = 3\n[balance]\nlambda = 2.0",
                           {"width=4", "balance.scope=ema(0.9)", "router = expert_choice", "tags=[\"x\", \"y\"]",
                            "mix.math=0.25", "width=5", "tied=true"});
  EXPECT_EQ(run.width, 5);
  EXPECT_TRUE(run.tied);
  EXPECT_EQ(run.balance.lambda, 2.0);
  EXPECT_EQ(to_string(run.balance.scope), "ema(0.9)");
  EXPECT_EQ(run.router, "expert_choice");
  EXPECT_THAT(run.tags, ElementsAre("x", "y"));
  EXPECT_EQ(run.mix, (std::map<std::string, double>{{"math", 0.25}}));
}

TEST(Override, TakesABareWordAsAString) {
  EXPECT_EQ(read_run("", {"router=top_k"}).router, "top_k");
  EXPECT_EQ(read_run("", {"router="}).router, "");
  EXPECT_EQ(read_run("", {"router=/a b/c=d \"e\" #f"}).router, "/a b/c=d \"e\" #f");
  EXPECT_EQ(read_run("", {"router=\"12\""}).router, "12");
  EXPECT_EQ(read_run("", {"router='a\\b'"}).router, "a\\b");
  EXPECT_EQ(read_run("", {"router=007"}).router, "007");
  EXPECT_THAT([] { read_run("", {"width=9223372036854775808"}); }, fails_with(HasSubstr("not a TOML value")));
}

TEST(Override, PathIsThatOfTheKeysItSets) {
  EXPECT_THAT(override_path("seed=3"), ElementsAre("seed"));
  EXPECT_THAT(override_path(R"( "a b" . c = 3)"), ElementsAre("a b", "c"));
}

TEST(Override, ReplacesWholeTablesAndLists) {
  const RunConfig run = read_run("[mix]\nlaw = 3\nart = 4\n[[arms]]\nname = \"a\"",
                           {"mix={ math = 1 }", "arms=[{ name = \"b\" }, { name = \"c\" }]"});
  EXPECT_EQ(run.mix, (std::map<std::string, double>{{"math", 1.0}}));
  ASSERT_EQ(run.arms.size(), 2U);
  EXPECT_EQ(run.arms[1].name, "c");
}

TEST(Override, ErrorsNameTheOverride) {
  EXPECT_THAT([] { read_run("width = 1", {"width=1.5"}); },
              fails_with("--set width=1.5: width: expected an integer, given float 1.5"));
  EXPECT_THAT([] { read_run("", {"balance.scop=ranks"}); },
              fails_with(StartsWith("--set balance.scop=ranks: balance.scop: unknown key 'scop' (did you mean 'scope'?)")));
  EXPECT_THAT([] { read_run("[balance]\nlambda = 1", {"balance.scope=rank"}); },
              fails_with(StartsWith("--set balance.scope=rank: balance.scope: unknown scope 'rank'")));
  EXPECT_THAT([] { read_run("width = 1", {"width.x=1"}); },
              fails_with(AllOf(StartsWith("--set width.x=1: 'width' is integer 1"), HasSubstr("set it whole"))));
  EXPECT_THAT([] { read_run("[[arms]]\nname = \"a\"", {"arms.name=b"}); }, fails_with(HasSubstr("'arms' is an array")));
  EXPECT_THAT([] { read_run("[balance]\nlambda = -1", {"width=2"}); },
              fails_with(AllOf(StartsWith("demo.toml:1: balance"), Not(HasSubstr("--set")))));
}

// The check of a whole section knows the section's place alone, which is the file's.
TEST(Override, ChecksOfASectionNameItsOverrides) {
  EXPECT_THAT([] { read_run("[balance]\nlambda = 1", {"width=2", "balance.lambda=-1", "balance.scope=ranks"}); },
              fails_with(AllOf(StartsWith("demo.toml:1: balance: lambda must"),
                               HasSubstr("(changed by --set balance.lambda=-1, --set balance.scope=ranks)"))));
  EXPECT_THAT([] { read_run("", {"balance={ lambda = -1 }"}); },
              fails_with("--set balance={ lambda = -1 }: balance: lambda must be at least 0"));
  EXPECT_THAT([] { read_run("", {"balance.lambda=-1"}); }, fails_with(HasSubstr("--set balance.lambda=-1")));
  EXPECT_THAT([] { read_run("", {"balance.lambda=-1", "balance.scope=ranks"}); },
              fails_with(AllOf(HasSubstr("--set balance.lambda=-1"), HasSubstr("--set balance.scope=ranks"))));
}

TEST(Override, RefusesWhatIsNoKeyAndValue) {
  for (const char* text : {"", "width", "=3", " =3", "a..b=3", "#=3", "[a]=3", "a b=3"}) {
    EXPECT_THAT([&] { read_run("", {text}); }, fails_with(StartsWith(std::string("--set ") + text))) << text;
  }
  EXPECT_THAT([] { read_run("", {"width=1\ntied=true"}); }, fails_with(HasSubstr("single line")));
  EXPECT_THAT([] { read_run("", {"seeds=[1, 2"}); }, fails_with(HasSubstr("--set seeds=[1, 2: not a TOML value")));
}

TEST(ConfigNode, MissingKeysAreErrors) {
  const ConfigNode node = parse_config_text("", "demo.toml");
  int64_t value = 0;
  EXPECT_THAT([&] { node.get("width", value); }, fails_with("demo.toml: width: not given"));
  EXPECT_THROW((void)node.child("balance"), ConfigError);
  EXPECT_THROW((void)node.children("arms"), ConfigError);
  EXPECT_FALSE(node.has("width"));
}

TEST(DescribeConfig, ListsEveryKeyWithValueAndHelp) {
  std::vector<std::string> lines;
  for (const FieldDoc& doc : describe_config(RunConfig())) {
    lines.push_back(join_text(doc.key, " = ", doc.value, " # ", doc.help));
  }
  EXPECT_THAT(lines, ElementsAre("width = 256 # model width D", "tied = false # tied embeddings",
                                 "router = \"top_k\" # router", "seeds = [1] # seeds", "tags = [] # tags",
                                 "mix = { \"law\" = 1.0 } # share of each domain",
                                 "balance.lambda = 0.01 # coefficient of the loss",
                                 "balance.scope = \"optimizer_batch\" # balancing scope", "arms[].name = \"\" # label",
                                 "arms[].balance.lambda = 0.01 # coefficient of the loss",
                                 "arms[].balance.scope = \"optimizer_batch\" # balancing scope"));
}

}  // namespace
}  // namespace switchyard
