#include "switchyard/kernels/free_ranges.hpp"

#include <algorithm>
#include <iterator>

namespace switchyard {

size_t FreeRanges::take(size_t size) {
  const auto fits = std::ranges::find_if(size_of_begin_, [size](const auto& range) { return range.second >= size; });
  if (fits != size_of_begin_.end()) {
    const auto [begin, free_size] = *fits;
    size_of_begin_.erase(fits);
    if (free_size > size) size_of_begin_[begin + size] = free_size - size;
    return begin;
  }
  // Grow from the end, or from what is free just before it.
  size_t begin = end_;
  if (!size_of_begin_.empty()) {
    const auto last = std::prev(size_of_begin_.end());
    if (last->first + last->second == end_) {
      begin = last->first;
      size_of_begin_.erase(last);
    }
  }
  end_ = begin + size;
  return begin;
}

void FreeRanges::give(size_t begin, size_t size) {
  auto after = size_of_begin_.lower_bound(begin);
  if (after != size_of_begin_.end() && after->first == begin + size) {
    size += after->second;
    after = size_of_begin_.erase(after);
  }
  if (after != size_of_begin_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == begin) {
      before->second += size;
      return;
    }
  }
  size_of_begin_[begin] = size;
}

}  // namespace switchyard
