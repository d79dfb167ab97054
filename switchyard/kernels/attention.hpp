#pragma once
// Causal grouped-query attention (arXiv 2305.13245): softmax(q k^T) v, a position sees itself and what lies before it in its
// row. Letters as in kernels/rope.hpp.

#include <ATen/core/Tensor.h>

#include "switchyard/kernels/rope.hpp"

namespace switchyard {

/// @param heads  queries already scaled
/// @return [B * S, H * W], heads in their order in the projection
[[nodiscard]] at::Tensor causal_attention(const AttentionHeads& heads);
[[nodiscard]] at::Tensor causal_attention_reference(const AttentionHeads& heads);

}  // namespace switchyard
