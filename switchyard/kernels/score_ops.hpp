#pragma once
// Rows of attention scores between the products of tile_attention, in SIMD (Highway) with the instruction set chosen at run time.
// Scores are fp32 as the product left them; what goes into the next product is bf16, rounded once, or stays fp32. No tensors here.
// Rows are padded: `width` is a multiple of kScoreLanes and may be read and written whole, only the first `visible` numbers count.

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace switchyard {

inline constexpr int64_t kScoreLanes = 64;

struct ExpSum {
  float inverse_sum;  // 1 / sum(exp(score - max))
  float log_sum;      // log(sum(exp(score)))
};

struct ScoreRow {
  float* scores;   // become probabilities
  float* d_probs;  // become gradients of the scores; padding becomes 0
  float log_sum;
  int64_t visible;  // 0: a row that is not there
};

/// Two rows one below the other, for the next products. fp32: nothing more, they read what is in the rows.
template <typename Value>
struct ScoreRowPair {
  ScoreRow upper, lower;
};
template <>
struct ScoreRowPair<c10::BFloat16> {
  ScoreRow upper, lower;
  c10::BFloat16 *upper_d_scores, *lower_d_scores;
  c10::BFloat16 *probs_right, *d_scores_right;  // two rows of a RightMatrix
};

template <typename Value>
struct ScoreOps {
  /// exps = exp(score - max); 0 in the padding. visible >= 1. fp32: exps may be scores. NaN and infinite scores give NaN.
  ExpSum (*exponentials)(const float* scores, Value* exps, int64_t visible, int64_t width);
  /// probs = exp(score - log_sum), d_scores = probs * (d_probs - sum(probs * d_probs)).
  void (*gradient)(const ScoreRowPair<Value>& rows, int64_t width);
  /// to = factor * from. Any width, no padding.
  void (*scale)(const float* from, float factor, Value* to, int64_t width);
};

/// Value: c10::BFloat16 or float.
template <typename Value>
[[nodiscard]] const ScoreOps<Value>& score_ops();
template <>
const ScoreOps<c10::BFloat16>& score_ops();
template <>
const ScoreOps<float>& score_ops();

}  // namespace switchyard
