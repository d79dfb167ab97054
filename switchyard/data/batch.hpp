#pragma once
// Tokens with their labels, as a forward takes them. B rows, S positions, T = B * S tokens in row-major order.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard {

inline constexpr int64_t kIgnoredTarget = -100;

/// One or more whole micro-batches of an optimizer step. A segment is what the scope `sequence` counts by itself: a row, or
/// a packed document of a row. Segments are numbered in step order (micro-batch, row, document).
struct Batch {
  at::Tensor ids_BS;      // int64, 0 at padding
  at::Tensor targets_BS;  // int64, the next token; kIgnoredTarget where no loss is taken
  at::Tensor domain_T;    // int64, index of the domain; -1 at padding
  at::Tensor document_T;  // int64, document number, unique over the data set; -1 at padding
  at::Tensor segment_T;   // int64 in [0, G) within this batch; -1 at padding
  std::vector<int64_t> segment_tokens;       // valid tokens of each segment
  std::vector<int64_t> segment_micro_batch;  // micro-batch of each segment within the step; never falls

  [[nodiscard]] int64_t num_segments() const { return static_cast<int64_t>(segment_tokens.size()); }
  [[nodiscard]] int64_t num_targets() const;  // targets that are scored
};

/// Rows of all batches, in order, as one batch; segments keep their micro-batch. Rows must have equal length S.
[[nodiscard]] Batch join_batches(const std::vector<Batch>& batches);

}  // namespace switchyard
