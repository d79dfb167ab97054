// Which parts of a region are in use: never two users of one place, and no gaps that nobody uses.

#include "switchyard/kernels/free_ranges.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <iterator>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(FreeRanges, TakesTheFirstThatFitsAndGrowsFromWhatIsFreeAtTheEnd) {
  FreeRanges ranges;
  EXPECT_EQ(ranges.take(10), 0U);
  EXPECT_EQ(ranges.take(20), 10U);
  EXPECT_EQ(ranges.take(30), 30U);
  ranges.give(0, 10);
  ranges.give(30, 30);
  EXPECT_EQ(ranges.take(4), 0U);
  EXPECT_EQ(ranges.take(40), 30U);  // 30 are free there, 10 are new
  EXPECT_EQ(ranges.end(), 70U);
  EXPECT_THAT(ranges.free(), ElementsAre(Pair(4, 6)));
}

TEST(FreeRanges, NeighboursThatAreFreeBecomeOne) {
  FreeRanges ranges;
  for (int i = 0; i < 4; ++i) EXPECT_EQ(ranges.take(10), 10U * static_cast<size_t>(i));
  ranges.give(0, 10);
  ranges.give(20, 10);
  EXPECT_THAT(ranges.free(), ElementsAre(Pair(0, 10), Pair(20, 10)));
  ranges.give(10, 10);
  EXPECT_THAT(ranges.free(), ElementsAre(Pair(0, 30)));
  EXPECT_EQ(ranges.take(30), 0U);
}

RC_GTEST_PROP(FreeRanges, UsedAndFreeRangesTileTheRegion, (const std::vector<std::pair<bool, uint8_t>>& steps)) {
  FreeRanges ranges;
  std::vector<std::pair<size_t, size_t>> used;  // begin, size
  for (const auto& [gives, number] : steps) {
    if (gives && !used.empty()) {
      const auto which = used.begin() + number % std::ssize(used);
      ranges.give(which->first, which->second);
      used.erase(which);
    } else {
      const size_t size = number + 1U;
      used.emplace_back(ranges.take(size), size);
    }
    std::map<size_t, size_t> all = ranges.free();
    for (const auto& [begin, size] : used) RC_ASSERT(all.emplace(begin, size).second);
    size_t position = 0;
    for (const auto& [begin, size] : all) {
      RC_ASSERT(begin == position);
      position += size;
    }
    RC_ASSERT(position == ranges.end());
    for (auto range = ranges.free().begin(); range != ranges.free().end(); ++range) {
      const auto next = std::next(range);
      RC_ASSERT(next == ranges.free().end() || range->first + range->second < next->first);
    }
  }
}

}  // namespace
}  // namespace switchyard
