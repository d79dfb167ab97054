#include "switchyard/cli/cli.hpp"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "switchyard/cli/verbs.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  int code = 0;
  std::string out;
  std::string err;
};

Outcome run(const std::vector<std::string>& arguments, Screen screen = Screen::Plain) {
  std::ostringstream out;
  std::ostringstream err;
  const std::atomic<bool> stop{false};
  Session session{out, err};
  session.out_screen = screen;
  session.err_screen = screen;
  session.stop = &stop;
  const int code = run_cli(arguments, session);
  return {code, out.str(), err.str()};
}

TEST(Cli, HelpsOnEveryVerbWithAnExample) {
  const Outcome program = run({"--help"});
  EXPECT_EQ(program.code, 0);
  for (const std::string verb : {"data", "train", "testbed", "report", "export", "list", "version"}) {
    EXPECT_THAT(program.out, HasSubstr("\n  " + verb + " "));
    const Outcome help = run({verb, "--help"});
    EXPECT_EQ(help.code, 0) << verb;
    EXPECT_THAT(help.out, AllOf(HasSubstr("Usage: switchyard " + verb), HasSubstr("Example"))) << verb;
    EXPECT_EQ(help.err, "") << verb;
  }
  EXPECT_THAT(run({"data", "build", "--help"}).out,
              AllOf(HasSubstr("Usage: switchyard data build"), HasSubstr("mix16: chess"), Not(HasSubstr("Exit codes"))));
}

TEST(Cli, ExplainsWrongUse) {
  struct Case {
    std::vector<std::string> arguments;
    std::string expected;
  };
  const std::vector<Case> cases = {
      {{}, "a verb is missing; known: data, train"},
      {{"trian"}, "unknown verb 'trian' (did you mean 'train'?)"},
      {{"data"}, "a verb is missing; known: build, show"},
      {{"data", "biuld"}, "unknown verb 'biuld' (did you mean 'build'?)"},
      {{"trian", "--help"}, "unknown verb 'trian' (did you mean 'train'?)"},
      {{"--help", "data", "biuld"}, "unknown verb 'biuld' (did you mean 'build'?)"},
      {{"data", "biuld", "--help"}, "unknown verb 'biuld' (did you mean 'build'?)"},
      {{"data", "build", "--cap", "-1"}, "--cap is -1; expected 0 (no limit) to"},
      {{"data", "build", "--cap", "1e-7"}, "--cap is 1e-07 MB, less than a byte"},
      {{"data", "build", "--cap", "inf"}, "--cap is inf; expected"},
      {{"data", "build", "--cap", "nan"}, "--cap is nan; expected"},
      {{"train", "x.toml", "--outt", "y"}, "unknown option '--outt' (did you mean '--out'?)"},
      {{"train"}, "no CONFIG given"},
      {{"train", "/no/such.toml"}, "/no/such.toml: No such file"},
      {{"train", "--resume", "/no/such"}, "is no run folder"},
      {{"train", "--resume", "a", "--out", "b"}, "--out and --resume"},
      {{"train", "x.toml", "--resume", ""}, "--resume: an empty text was given; expected folder of a run to go on with"},
      {{"train", "x.toml", "--out", ""}, "--out: an empty text was given"},
      {{"train", ""}, "config: an empty text was given"},
      {{"data", "build", "--from", ""}, "--from: an empty text was given"},
      {{"launch", "-n", "2", "--", "train", "x.toml", "--resume", ""}, "command: an empty text was given"},
      {{"list", "router"}, "unknown list 'router' (did you mean 'routers'?)"},
      {{"list"}, "no topic given; expected routers, balancers"},
      {{"testbed", "x", "--jobs", "none"}, "--jobs"},
      {{"report", "/no/such"}, "no folder /no/such"},
      {{"report"}, "no runs given; expected run or testbed folders"},
      {{"testbed"}, "no config given; expected testbed configuration"},
      {{"export", "/no/such", "out"}, "no folder /no/such"},
      {{"data", "show", "/no/such"}, "no folder /no/such"},
      {{"data", "build", "--from", "/no/such", "--out", "/no/such/data"}, "no folder /no/such"},
      {{"data", "build", "--preset", "mix8", "--from", "x"}, "--preset and --from"},
      {{"data", "build", "--preset", "mix9", "--out", "/no/such/place"}, "did you mean 'mix8'?"},
  };
  for (const Case& wrong : cases) {
    const Outcome outcome = run(wrong.arguments);
    EXPECT_EQ(outcome.code, kExitWrongUse) << wrong.expected;
    EXPECT_THAT(outcome.err, AllOf(::testing::StartsWith("switchyard: "), HasSubstr(wrong.expected)));
    EXPECT_EQ(outcome.out, "") << wrong.expected;
  }
}

// A folder that is named and not there is wrong use; one that is there and holds something else is a failure.
TEST(Cli, FailsOnAFolderThatHoldsNoData) {
  const Outcome outcome = run({"data", "show", "/"});
  EXPECT_EQ(outcome.code, kExitFailed);
  EXPECT_THAT(outcome.err, HasSubstr("no data set in /"));
}

TEST(Cli, SaysThatSetMayBeRepeated) {
  for (const std::string verb : {"train", "testbed"}) {
    EXPECT_THAT(run({verb, "--help"}).out, AllOf(HasSubstr("--set KEY=VALUE "), HasSubstr("may be repeated"), Not(HasSubstr("VALUE ..."))));
    const Outcome two = run({verb, "x.toml", "--set", "steps=1", "seed=2"});
    EXPECT_EQ(two.code, kExitWrongUse) << verb;
    EXPECT_THAT(two.err, HasSubstr("repeat it: --set seed=2")) << verb;
  }
}

TEST(Cli, ListsAsTextAndAsJson) {
  for (const std::string topic : {"routers", "balancers", "scopes", "metrics", "keys"}) {
    const Outcome text = run({"list", topic});
    EXPECT_EQ(text.code, 0) << topic;
    const nlohmann::json items = nlohmann::json::parse(run({"list", topic, "--json"}).out);
    ASSERT_TRUE(items.is_array()) << topic;
    EXPECT_EQ(static_cast<size_t>(std::count(text.out.begin(), text.out.end(), '\n')), items.size() + 1) << topic;
    for (const auto& item : items) {
      const std::string name = item.contains("name") ? item["name"] : item["key"];
      EXPECT_THAT(text.out, HasSubstr("\n" + name)) << topic;
      EXPECT_FALSE(item["description"].get<std::string>().empty()) << topic << " " << name;
    }
  }
}

TEST(Cli, TellsItsVersion) {
  EXPECT_THAT(run({"version"}).out, HasSubstr("PyTorch 2.13"));
  EXPECT_TRUE(nlohmann::json::parse(run({"version", "--json"}).out).contains("commit"));
}

TEST(Cli, ColoursOnlyATerminal) {
  EXPECT_THAT(run({"list", "scopes"}, Screen::Terminal).out, HasSubstr("\x1b["));
  EXPECT_THAT(run({"list", "scopes"}).out, Not(HasSubstr("\x1b")));
  EXPECT_THAT(run({"trian"}).err, Not(HasSubstr("\x1b")));
}

TEST(Cli, ExplainsErrorsOfLibtorchWithoutABacktrace) {
  const auto message_of = [](const std::string& text) {
    std::ostringstream out;
    std::ostringstream err;
    Session session{out, err};
    EXPECT_EQ(run_action([&](Session&) -> int { TORCH_CHECK(false, text); }, session), kExitFailed);
    return err.str();
  };
  for (const std::string text : {"DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12",
                                 "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."}) {
    EXPECT_THAT(message_of(text), AllOf(HasSubstr("out of memory: use a smaller model"), Not(HasSubstr("report")))) << text;
  }
  EXPECT_EQ(message_of("something else"), "switchyard: unexpected error, please report it: something else\n");
}

TEST(Cli, TakesOneDnnWithoutMemoryForWhatItIs) {
  const auto message_of = [](const std::string& text) {
    std::ostringstream out;
    std::ostringstream err;
    Session session{out, err};
    EXPECT_EQ(run_action([&](Session&) -> int { throw std::runtime_error(text); }, session), kExitFailed);
    return err.str();
  };
  EXPECT_THAT(message_of("could not create a primitive"),
              AllOf(HasSubstr("out of memory: use a smaller model"), HasSubstr("(oneDNN says: could not create a primitive)")));
  EXPECT_THAT(message_of("could not create a primitive descriptor"), HasSubstr("report it"));
}

TEST(Cli, FailsWhenItsOutputCannotBeWritten) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"list", "scopes"}, {"--help"}, {"train", "--help"}, {"data", "build", "--help"}}) {
    std::ostringstream out;
    std::ostringstream err;
    out.setstate(std::ios::badbit);
    Session session{out, err};
    EXPECT_EQ(run_cli(arguments, session), kExitFailed) << arguments.back();
    EXPECT_THAT(err.str(), HasSubstr("could not be written")) << arguments.back();
  }
}

}  // namespace
}  // namespace switchyard
