#include "switchyard/core/text.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace switchyard {
namespace {

const std::vector<std::string> kRouters = {"top_k", "random", "expert_choice"};

TEST(NearestName, FindsOneEditOfEachKind) {
  EXPECT_EQ(nearest_name("topk", kRouters), "top_k");           // left out
  EXPECT_EQ(nearest_name("top__k", kRouters), "top_k");         // put in
  EXPECT_EQ(nearest_name("top-k", kRouters), "top_k");          // replaced
  EXPECT_EQ(nearest_name("tpo_k", kRouters), "top_k");          // swapped
  EXPECT_EQ(nearest_name("expert_choise", kRouters), "expert_choice");
}

TEST(NearestName, CountsASwapAsOneEdit) {
  const std::vector<std::string> names = {"abxx", "abdc"};
  EXPECT_EQ(nearest_name("abcd", names), "abdc");
}

TEST(NearestName, TakesTheFirstOfEquallyNearOnes) {
  const std::vector<std::string> names = {"abcx", "abcy"};
  EXPECT_EQ(nearest_name("abcz", names), "abcx");
}

TEST(NearestName, IsEmptyWhenNothingIsNear) {
  EXPECT_EQ(nearest_name("gate", kRouters), "");
  EXPECT_EQ(nearest_name("", kRouters), "");
  EXPECT_EQ(nearest_name("top_k", std::vector<std::string>{}), "");
  EXPECT_EQ(nearest_name("x", std::vector<std::string>{"ab"}), "");
}

TEST(QuotedForShell, LeavesPlainWordsAndQuotesTheRest) {
  for (const char* plain : {"train", "configs/train/quick.toml", "--set", "run.steps=50", "-n"}) EXPECT_EQ(quoted_for_shell(plain), plain);
  EXPECT_EQ(quoted_for_shell("data.domains=[\"de\"]"), "'data.domains=[\"de\"]'");
  EXPECT_EQ(quoted_for_shell("it's"), "'it'\\''s'");
  EXPECT_EQ(quoted_for_shell("two words"), "'two words'");
  EXPECT_EQ(quoted_for_shell("$HOME"), "'$HOME'");
  EXPECT_EQ(quoted_for_shell(""), "''");
}

TEST(Joined, PutsTheSeparatorBetween) {
  const auto to_text = [](int number) { return std::to_string(number); };
  EXPECT_EQ(joined(std::vector<int>{}, "; ", to_text), "");
  EXPECT_EQ(joined(std::vector<int>{7}, "; ", to_text), "7");
  EXPECT_EQ(joined(std::vector<int>{7, 8, 9}, "; ", to_text), "7; 8; 9");
}

TEST(CommaList, JoinsWithCommas) {
  EXPECT_EQ(comma_list(std::vector<std::string>{}), "");
  EXPECT_EQ(comma_list(std::vector<std::string>{"a"}), "a");
  EXPECT_EQ(comma_list(std::vector<std::string>{"a", "b", "c"}), "a, b, c");
}

TEST(StripCharacters, TakesThemFromBothEndsOnly) {
  EXPECT_EQ(strip_characters(" \ta b\t ", " \t"), "a b");
  EXPECT_EQ(strip_characters("a", " "), "a");
  EXPECT_EQ(strip_characters("  ", " "), "");
  EXPECT_EQ(strip_characters("", " "), "");
}

TEST(GroupedDigits, SeparatesEachThreeFromTheRight) {
  EXPECT_EQ(grouped_digits(0, ","), "0");
  EXPECT_EQ(grouped_digits(-123, ","), "-123");
  EXPECT_EQ(grouped_digits(1000, ","), "1,000");
  EXPECT_EQ(grouped_digits(-1234567, "&thinsp;"), "-1&thinsp;234&thinsp;567");
}

TEST(WithoutSignOfZero, DropsTheSignWhereNoDigitShowsIt) {
  EXPECT_EQ(without_sign_of_zero("-0.00"), "0.00");
  EXPECT_EQ(without_sign_of_zero("-0"), "0");
  EXPECT_EQ(without_sign_of_zero("-0.01"), "-0.01");
  EXPECT_EQ(without_sign_of_zero("0.00"), "0.00");
}

TEST(UnknownName, SaysWhatWasMeantAndWhatIsKnown) {
  EXPECT_EQ(unknown_name("router", "topkk", kRouters),
            "unknown router 'topkk' (did you mean 'top_k'?); known: top_k, random, expert_choice");
  EXPECT_EQ(unknown_name("router", "gate", kRouters), "unknown router 'gate'; known: top_k, random, expert_choice");
  EXPECT_THAT(unknown_name("router", std::string_view("\0x\x1b", 3), kRouters), testing::StartsWith("unknown router '\\u0000x\\u001B'; known: "));
}

TEST(WithoutErrorName, LeavesTheWords) {
  EXPECT_EQ(without_error_name("[json.exception.out_of_range.403] key 'format' not found"), "key 'format' not found");
  EXPECT_EQ(without_error_name("no [name] here"), "no [name] here");
  EXPECT_EQ(without_error_name("[1, 2"), "[1, 2");
}

}  // namespace
}  // namespace switchyard
