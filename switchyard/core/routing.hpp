#pragma once
// The other struct that joins the stages: what a router decided for the tokens of one forward in one layer.
// T tokens, E experts, K chosen per token, A assignments (slots): A = T * K for a fixed K.

#include <ATen/core/Tensor.h>

#include "switchyard/core/expert_counts.hpp"

namespace switchyard {

/// Slots sorted by expert (stable: by token within an expert). Holds any router, also those where the number of experts per
/// token varies or experts choose tokens. Padding tokens have no slots.
struct Routing {
  at::Tensor logits_TE;     // fp32, with autograd; undefined for routers without scores
  at::Tensor probs_TE;      // fp32, rows sum to 1, with autograd; undefined for routers without scores
  at::Tensor token_A;       // int64, the token of each slot
  at::Tensor expert_A;      // int64, ascending
  at::Tensor weight_A;      // fp32 combine weight, with autograd where the router has any
  at::Tensor kept_A;        // bool; false: requested but dropped (capacity). Undefined: all kept
  at::Tensor offsets_E;     // int64 [E + 1]: slots of expert e are [offsets_E[e], offsets_E[e + 1])
  at::Tensor ids_TK;        // int64, fixed K only: experts by falling score, -1 in the rows of padding tokens; else undefined
  at::Tensor weights_TK;    // fp32, fixed K only, zero in the rows of padding tokens; else undefined
  int64_t num_tokens = 0;   // T, padding included
  int64_t num_experts = 0;  // E
};

/// Builds the slot list from a fixed K choice. Rows of ids_TK that are -1 (padding) make no slots.
/// @param ids_TK      int64 in [-1, E)
/// @param weights_TK  fp32, autograd flows through to weight_A
[[nodiscard]] Routing routing_from_top_k(const at::Tensor& ids_TK, const at::Tensor& weights_TK, int64_t num_experts);

/// Counts the requested slots of each group.
/// @param group_T  int64 [T] in [-1, num_groups), -1 for padding
/// @return counts_GE and tokens_G, int64; padding counts nowhere
/// @throws ShapeError when a group is out of range or a padding token has a slot
[[nodiscard]] ExpertCounts count_experts(const Routing& routing, const at::Tensor& group_T, int64_t num_groups);

}  // namespace switchyard
