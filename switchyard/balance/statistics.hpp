#pragma once
// What one forward of one layer contributes: additive statistics of each segment. S segments of the forward, E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "switchyard/core/expert_counts.hpp"
#include "switchyard/core/routing.hpp"

namespace switchyard {

struct SegmentStatistics {
  ExpertCounts counts;       // int64 [S, E] requested slots and [S] valid tokens
  at::Tensor prob_sums_SE;   // double: sums of probabilities; undefined without probabilities
  at::Tensor squared_lse_S;  // double: sums of logsumexp(logits)^2; undefined unless asked for
};

enum class TokenStatistics { None, SquaredLse };  // what is gathered beside counts and probabilities

/// Padding (segment_T = -1) counts nowhere. On the CPU, in a fixed order: the same bits for any number of threads.
/// @throws ShapeError for shapes that do not fit, and where a sum of probabilities is not finite (names segment and expert)
[[nodiscard]] SegmentStatistics segment_statistics(const Routing& routing, const at::Tensor& segment_T, int64_t num_segments,
                                                   TokenStatistics token_statistics);

}  // namespace switchyard
