// read_config(to_toml(x)) == x, for values chosen to break it and for random ones.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "switchyard/core/config.hpp"
#include "switchyard/core/scope.hpp"

namespace switchyard {
namespace {

struct Inner {
  Scope scope;
  std::map<std::string, double> shares = {{"default", 1.0}};

  bool operator==(const Inner&) const = default;
  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("scope", scope, "");
    visit("shares", shares, "");
  }
};

struct Middle {
  std::string name = "default";
  Inner inner;
  std::vector<Inner> list = {Inner()};

  bool operator==(const Middle&) const = default;
  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("inner", inner, "");  // before a plain field: the writer must move the table behind it
    visit("list", list, "");
    visit("name", name, "");
  }
};

struct Outer {
  bool flag = true;
  int64_t integer = 5;
  double real = 0.5;
  std::string text = "default";
  std::vector<std::string> texts = {"default"};
  std::vector<int64_t> integers = {1};
  std::vector<double> reals = {1.0};
  Middle section;
  std::vector<Middle> sections = {Middle()};

  bool operator==(const Outer&) const = default;
  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("section", section, "");
    visit("flag", flag, "");
    visit("integer", integer, "");
    visit("sections", sections, "");
    visit("real", real, "");
    visit("text", text, "");
    visit("texts", texts, "");
    visit("integers", integers, "");
    visit("reals", reals, "");
  }
};

Outer round_trip(const Outer& given) {
  Outer read;
  read_config(parse_config_text(to_toml(given), "round_trip.toml"), read);
  return read;
}

double round_trip_real(double value) {
  Outer outer;
  outer.real = value;
  return round_trip(outer).real;
}

TEST(ConfigRoundTrip, Defaults) { EXPECT_EQ(round_trip(Outer()), Outer()); }

TEST(ConfigRoundTrip, EmptyListsReplaceDefaults) {
  Outer outer;
  outer.texts.clear();
  outer.integers.clear();
  outer.reals.clear();
  outer.sections.clear();
  outer.section.list.clear();
  outer.section.inner.shares.clear();
  outer.text.clear();
  EXPECT_EQ(round_trip(outer), outer);
}

TEST(ConfigRoundTrip, NestedSections) {
  Outer outer;
  outer.sections.resize(2);
  outer.sections[0].name = "a";
  outer.sections[0].list.clear();
  outer.sections[1].list.resize(2);
  outer.sections[1].list[1].scope = Scope{.kind = ScopeKind::Ema, .decay = 0.1};
  outer.sections[1].inner.shares = {{"", 1.0}, {"a.b", 2.0}, {"c++ \"x\"", 3.0}, {"\n", 4.0}};
  EXPECT_EQ(round_trip(outer), outer);
}

TEST(ConfigRoundTrip, AwkwardDoubles) {
  using Limits = std::numeric_limits<double>;
  for (const double value : {0.0, -0.0, 1.0, -1.0, 0.1, 0.1 + 0.2, 1e-5, 1e22, 1e23, 1e300, 123456789012345680.0, 5e-324,
                             2.2250738585072011e-308, Limits::min(), Limits::max(), Limits::lowest(), Limits::epsilon(),
                             Limits::infinity(), -Limits::infinity()}) {
    EXPECT_EQ(std::bit_cast<uint64_t>(round_trip_real(value)), std::bit_cast<uint64_t>(value)) << toml_value(value);
  }
  EXPECT_TRUE(std::isnan(round_trip_real(std::nan(""))));
}

TEST(ConfigRoundTrip, AwkwardStrings) {
  for (const std::string& text :
       {std::string("\"quoted\" 'single'"), std::string("a\\b\\n"), std::string("line\nline\r\n\ttab"),
        std::string("\0\x01\x1f\x7f", 4),
        std::string("caf\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80"), std::string("# no comment"), std::string("\"\"\""),
        std::string(" \xe2\x80\xa8 "), std::string("\xef\xbb\xbf")}) {
    Outer outer;
    outer.text = text;
    outer.texts = {text, "", text + text};
    outer.section.inner.shares = {{text, 1.0}};
    EXPECT_EQ(round_trip(outer), outer) << text;
  }
}

TEST(TomlValue, IsTheShortestExactForm) {
  EXPECT_EQ(toml_value(0.1), "0.1");
  EXPECT_EQ(toml_value(3.0), "3.0");
  EXPECT_EQ(toml_value(-0.0), "-0.0");
  EXPECT_EQ(toml_value(1e-5), "1e-05");
  EXPECT_EQ(toml_value(1e300), "1e+300");
  EXPECT_EQ(toml_value(std::vector<double>{1.0, 2.5}), "[1.0, 2.5]");
  EXPECT_EQ(toml_value(std::map<std::string, double>()), "{}");
}

RC_GTEST_PROP(ConfigRoundTrip, AnyDouble, ()) {
  const double value = std::bit_cast<double>(*rc::gen::arbitrary<uint64_t>());
  RC_PRE(!std::isnan(value));
  RC_ASSERT(std::bit_cast<uint64_t>(round_trip_real(value)) == std::bit_cast<uint64_t>(value));
}

RC_GTEST_PROP(ConfigRoundTrip, AnyPlainValues, (bool flag, int64_t integer, const std::vector<int64_t>& integers)) {
  Outer outer;
  outer.flag = flag;
  outer.integer = integer;
  outer.integers = integers;
  RC_ASSERT(round_trip(outer) == outer);
}

RC_GTEST_PROP(ConfigRoundTrip, AnyAsciiStrings, ()) {
  Outer outer;
  const auto any_text = rc::gen::container<std::string>(rc::gen::inRange<char>(0, 127));
  outer.text = *any_text;
  outer.texts = *rc::gen::container<std::vector<std::string>>(any_text);
  outer.section.inner.shares = *rc::gen::container<std::map<std::string, double>>(any_text, rc::gen::just(0.25));
  RC_ASSERT(round_trip(outer) == outer);
}

}  // namespace
}  // namespace switchyard
