#pragma once
// Rows divided into blocks of a fixed size, worked on in parallel. Sums over rows are taken per block and then over blocks in
// order, so they have the same bits for any number of threads.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace switchyard {

inline constexpr int64_t kRowsPerBlock = 64;

[[nodiscard]] inline int64_t num_row_blocks(int64_t num_rows) { return at::divup(num_rows, kRowsPerBlock); }

/// body(block, first row, one past the last row)
template <typename Body>
void for_each_row_block(int64_t num_rows, const Body& body) {
  at::parallel_for(0, num_row_blocks(num_rows), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      body(block, block * kRowsPerBlock, std::min(num_rows, (block + 1) * kRowsPerBlock));
    }
  });
}

}  // namespace switchyard
