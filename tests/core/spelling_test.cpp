// One table per enum in both directions, and what a section's check says.

#include "switchyard/core/spelling.hpp"

#include <gtest/gtest.h>

#include "switchyard/core/section_check.hpp"

namespace switchyard {
namespace {

enum class Color { Red, DarkBlue, Unnamed };

// Not in the order of the enum: nothing may rest on it.
constexpr auto kColors = std::to_array<Spelling<Color>>({{Color::DarkBlue, "dark_blue"}, {Color::Red, "red"}});

template <typename Failure, typename Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const Failure& error) {
    return error.what();
  }
  return "no error";
}

TEST(Spelling, GoesBothWays) {
  EXPECT_EQ(spelling_of(kColors, Color::Red), "red");
  EXPECT_EQ(from_spelling("color", kColors, "red"), Color::Red);
  EXPECT_EQ(from_spelling("color", kColors, spelling_of(kColors, Color::DarkBlue)), Color::DarkBlue);
}

TEST(Spelling, NamesWhatIsKnown) {
  EXPECT_EQ(message_of<ConfigError>([] { (void)from_spelling("color", kColors, "dark-blue"); }),
            "unknown color 'dark-blue' (did you mean 'dark_blue'?); known: dark_blue, red");
  EXPECT_EQ(message_of<UsageError>([] { (void)spelling_of(kColors, Color::Unnamed); }), "no spelling for enum value 2");
}

TEST(SectionCheck, NamesPlaceKeyValueAndWhatWasExpected) {
  const auto text = [](const std::string& where) {
    return message_of<ConfigError>([&] { SectionCheck{where}(false, "decay", .99999999, "below .9"); });
  };
  EXPECT_EQ(text("run.toml:12: optimizer"), "run.toml:12: optimizer.decay is 0.99999999; expected below .9");
  EXPECT_EQ(text("run.toml"), "run.toml: decay is 0.99999999; expected below .9");
  EXPECT_EQ(text(""), "decay is 0.99999999; expected below .9");
  EXPECT_NO_THROW(SectionCheck{"x"}(true, "decay", 1, "anything"));
}

}  // namespace
}  // namespace switchyard
