#pragma once
// Sizes of a decoder, known before it is made: its weights, and the floating-point operations of its matrix products.

#include "switchyard/model/config.hpp"

namespace switchyard {

/// Of a forward over `tokens` tokens in rows of `positions`, the loss's head included: 2 per multiplication and addition.
/// Attention counts its causal half, experts only chosen slots. A training step has three times as many, for backward has two
/// products for each of forward.
[[nodiscard]] double forward_flops(const ModelConfig& config, int64_t tokens, int64_t positions);

/// Weights of the matrices, those of routers left out.
struct WeightCounts {
  double experts = 0.0;  // all of them
  double others = 0.0;   // embedding, head, attention, dense and shared feed-forward layers
};
[[nodiscard]] WeightCounts count_weights(const ModelConfig& config);

}  // namespace switchyard
