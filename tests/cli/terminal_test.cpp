#include "switchyard/cli/terminal.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

TEST(Styled, WritesEscapeCodesOnlyOnATerminal) {
  EXPECT_EQ(styled(Screen::Plain, Style::Red, "bad"), "bad");
  EXPECT_EQ(styled(Screen::Terminal, Style::Red, "bad"), "\x1b[31mbad\x1b[0m");
}

TEST(DurationText, ChoosesItsUnits) {
  EXPECT_EQ(duration_text(0.4), "0s");
  EXPECT_EQ(duration_text(59.4), "59s");
  EXPECT_EQ(duration_text(59.6), "1m 00s");
  EXPECT_EQ(duration_text(3725.0), "1h 02m");
  EXPECT_EQ(duration_text(-1.0), "?");
  EXPECT_EQ(duration_text(std::numeric_limits<double>::quiet_NaN()), "?");
}

TEST(GroupedDigits, PutsCommasFromTheRight) {
  EXPECT_EQ(grouped_digits(0), "0");
  EXPECT_EQ(grouped_digits(999), "999");
  EXPECT_EQ(grouped_digits(1000), "1,000");
  EXPECT_EQ(grouped_digits(-1234567), "-1,234,567");
  EXPECT_EQ(grouped_digits(-123), "-123");
}

TEST(BarText, FillsInProportion) {
  EXPECT_EQ(bar_text(0, 4, 8), "[--------]");
  EXPECT_EQ(bar_text(1, 4, 8), "[##------]");
  EXPECT_EQ(bar_text(9, 4, 8), "[########]");
  EXPECT_EQ(bar_text(1, 0, 8), "[--------]");
}

TEST(TableText, AlignsColumnsByCodePoints) {
  const std::string text = table_text({{"arm", "S"}, {"\xC3\xA9t\xC3\xA9", "0.5"}, {"x", "10.25"}}, {Align::Left, Align::Right});
  EXPECT_EQ(text, "arm      S\n\xC3\xA9t\xC3\xA9    0.5\nx    10.25\n");
  EXPECT_THROW((void)table_text({{"a", "b"}}, {Align::Left}), UsageError);
}

TEST(StatusLine, PrintsWholeLinesElsewhere) {
  std::ostringstream out;
  StatusLine status(out, Screen::Plain);
  status.show("step 1");
  status.show("step 2");  // too early for another line
  status.print("note");
  status.finish("step 3");
  EXPECT_EQ(out.str(), "step 1\nnote\nstep 3\n");
}

TEST(StatusLine, ReplacesItselfOnATerminal) {
  std::ostringstream out;
  StatusLine status(out, Screen::Terminal);
  status.show("one\ntwo");
  out.str("");
  status.finish("end");
  EXPECT_EQ(out.str(), "\r\x1b[1A\x1b[Jend\n");
}

}  // namespace
}  // namespace switchyard
