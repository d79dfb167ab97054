#pragma once
// Floating-point operations of the matrix products of a decoder.

#include "switchyard/model/config.hpp"

namespace switchyard {

/// Of a forward over `tokens` tokens in rows of `positions`, the loss's head included: 2 per multiplication and addition.
/// Attention counts its causal half, experts only chosen slots. A training step has three times as many, for backward has two
/// products for each of forward.
[[nodiscard]] double forward_flops(const ModelConfig& config, int64_t tokens, int64_t positions);

}  // namespace switchyard
