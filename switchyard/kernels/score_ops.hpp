#pragma once
// Rows of attention scores between the products of tile_attention, in SIMD (Highway) with the instruction set chosen at run time.
// Scores are fp32 as the product left them; what goes into the next product is rounded once, to bf16. No tensors here. Rows are
// padded: `width` is a multiple of kScoreLanes and may be read and written whole, only the first `visible` numbers count.

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace switchyard {

inline constexpr int64_t kScoreLanes = 64;

struct ExpSum {
  float inverse_sum;  // 1 / sum(exp(score - max))
  float log_sum;      // log(sum(exp(score)))
};

/// Two rows one below the other. Pairs: number i of the upper row, number i of the lower one, i + 1 of the upper ...: the layout
/// of a right-hand matrix, kernels/tile_product.hpp.
struct ScoreRowPair {
  struct Row {
    float* scores;   // become probabilities
    float* d_probs;  // read; padding becomes 0
    float log_sum;
    int64_t visible;  // 0: a row that is not there
    c10::BFloat16* d_scores;
  } upper, lower;
  c10::BFloat16* probs_pairs;
  c10::BFloat16* d_scores_pairs;
};

struct ScoreOps {
  /// exps = exp(score - max), rounded; 0 in the padding. visible >= 1. NaN and infinite scores give NaN.
  ExpSum (*exponentials)(const float* scores, c10::BFloat16* exps, int64_t visible, int64_t width);
  /// probs = exp(score - log_sum), d_scores = probs * (d_probs - sum(probs * d_probs)).
  void (*gradient)(const ScoreRowPair& rows, int64_t width);
  /// to = factor * from, rounded. Any width, no padding.
  void (*scale)(const float* from, float factor, c10::BFloat16* to, int64_t width);
};

[[nodiscard]] const ScoreOps& score_ops();

}  // namespace switchyard
