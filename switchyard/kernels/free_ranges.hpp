#pragma once
// Which parts of a region are in use. Numbers only: no memory is touched.

#include <cstddef>
#include <map>

namespace switchyard {

/// Ranges of [0, end), end growing as needed. First fit by position, and neighbours that are free become one: blocks of a training
/// step, whose sizes change a little from step to step, then leave next to no gaps.
class FreeRanges {
 public:
  /// @param size  above 0
  /// @return where a range of that size begins, which is now in use
  [[nodiscard]] size_t take(size_t size);
  /// A range that take() gave, whole.
  void give(size_t begin, size_t size);

  /// One past the last position that was ever in use.
  [[nodiscard]] size_t end() const { return end_; }
  [[nodiscard]] const std::map<size_t, size_t>& free() const { return size_of_begin_; }

 private:
  std::map<size_t, size_t> size_of_begin_;
  size_t end_ = 0;
};

}  // namespace switchyard
