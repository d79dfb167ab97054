#pragma once
// What one forward of one layer contributes: additive statistics of each segment. S segments of the forward, E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "switchyard/core/expert_counts.hpp"
#include "switchyard/core/routing.hpp"

namespace switchyard {

/// What is gathered beside counts and sums of probabilities.
struct WantedStatistics {
  bool first_choices = false;
  bool prob_squares = false;
  bool load = false;
  bool squared_lse = false;
  int64_t num_chosen = 0;  // K, for the load
};

struct SegmentStatistics {
  ExpertCounts counts;         // int64 [S, E] requested slots and [S] valid tokens
  at::Tensor first_counts_SE;  // int64: first choices; undefined unless wanted
  at::Tensor prob_sums_SE;     // double: sums of probabilities; undefined without probabilities
  at::Tensor prob_squares_SE;  // double: sums of squared probabilities; undefined unless wanted
  at::Tensor load_sums_SE;     // double: sums of smooth_load(); undefined unless wanted
  at::Tensor squared_lse_S;    // double: sums of logsumexp(logits)^2; undefined unless wanted
};

/// Padding (segment_T = -1) counts nowhere. On the CPU, in a fixed order: the same bits for any number of threads.
/// @throws ShapeError for shapes that do not fit, a sum of probabilities that is not finite, and rows of probabilities whose
///         sum over a segment is not its number of tokens (each names segment and expert)
[[nodiscard]] SegmentStatistics segment_statistics(const Routing& routing, const at::Tensor& segment_T, int64_t num_segments,
                                                   const WantedStatistics& wanted);

/// Deviation of the noise that smooth_load() supposes: ln 2, what the noisy gate of arXiv 1701.06538 starts from.
inline constexpr double kLoadNoise = 0.6931471805599453;

/// Phi((h_e - h')/noise), h' the K-th largest of the other experts' logits: the chance that e is among the K chosen if its
/// logit alone gets noise again (arXiv 1701.06538, eq. 9, with a constant deviation and no noise in h). Differentiable.
/// @throws UsageError unless 1 <= num_chosen < E
[[nodiscard]] at::Tensor smooth_load(const at::Tensor& logits_TE, int64_t num_chosen);

}  // namespace switchyard
