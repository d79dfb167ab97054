#pragma once
// Causal attention in bf16 or fp32 by tiles, as in FlashAttention (arXiv 2205.14135, 2307.08691): of the
// probabilities only the logarithm of each row's sum is kept, backward computes them again. A block of queries meets all keys before
// it at once: its scores stay in the second-level cache, so no running maximum is needed.

#include <ATen/core/Tensor.h>

#include "switchyard/kernels/rope.hpp"

namespace switchyard {

/// bf16 or fp32 on a processor with tile products of them; in bf16 the head width is even.
[[nodiscard]] bool has_tile_attention(const AttentionHeads& heads);

struct TileAttention {
  at::Tensor out_TC;         // [B * S, H * W]
  at::Tensor log_sum_BJSI;   // fp32
};
/// Not differentiated by autograd.
[[nodiscard]] TileAttention tile_attention(const AttentionHeads& heads);

/// @return gradients of queries, keys and values
[[nodiscard]] AttentionHeads tile_attention_backward(const AttentionHeads& heads, const at::Tensor& log_sum_BJSI,
                                                     const at::Tensor& d_out_TC);

}  // namespace switchyard
