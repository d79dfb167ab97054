#pragma once
// One of the two structs that join the stages. G balance groups, E experts.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// How often each expert was requested in each balance group. Integers: exact, and they add up in any order.
struct ExpertCounts {
  at::Tensor counts_GE;  // int64 [G, E], requested slots (before any capacity drop)
  at::Tensor tokens_G;   // int64 [G], valid (not padding) tokens
};

}  // namespace switchyard
