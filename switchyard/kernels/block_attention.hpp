#pragma once
// Causal attention as batched products of ATen over blocks of queries and the keys before them: for any type, on any processor.

#include <ATen/core/Tensor.h>

#include "switchyard/kernels/rope.hpp"

namespace switchyard {

/// As causal_attention(), of heads that fit together, on the CPU.
[[nodiscard]] at::Tensor block_attention(const AttentionHeads& heads);

}  // namespace switchyard
