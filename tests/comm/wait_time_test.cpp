#include "switchyard/comm/wait_time.hpp"

#include <gtest/gtest.h>

namespace switchyard::test {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLook{10};

// Looks until `end`; @return whether the wait was over then.
bool look_until(WaitTime& waited, WaitTime::Clock::time_point& now, WaitTime::Clock::time_point end) {
  bool is_over = false;
  for (; now < end && !is_over; now += kLook) is_over = waited.is_over(now + kLook);
  return is_over;
}

TEST(WaitTime, EndsAfterTheLimitAndALittle) {
  WaitTime::Clock::time_point now{};
  WaitTime waited(milliseconds(500), now);
  EXPECT_FALSE(look_until(waited, now, now + milliseconds(500) + WaitTime::kGrace - kLook));
  EXPECT_TRUE(waited.is_over(now + kLook));
}

TEST(WaitTime, DoesNotCountAPause) {
  WaitTime::Clock::time_point now{};
  WaitTime waited(milliseconds(500), now);
  EXPECT_FALSE(look_until(waited, now, now + milliseconds(300)));
  now += std::chrono::hours(8);
  EXPECT_FALSE(waited.is_over(now));
  EXPECT_FALSE(look_until(waited, now, now + milliseconds(150)));
  EXPECT_TRUE(look_until(waited, now, now + milliseconds(60)));
}

// A machine that hands out a moment every two seconds must not wait for ever.
TEST(WaitTime, EndsAlsoWhereEveryLookIsLate) {
  WaitTime::Clock::time_point now{};
  WaitTime waited(milliseconds(500), now);
  int looks = 0;
  for (bool is_over = false; !is_over; ++looks) is_over = waited.is_over(now += std::chrono::seconds(2));
  EXPECT_EQ(looks, 6);
}

}  // namespace
}  // namespace switchyard::test
