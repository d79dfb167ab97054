#pragma once
// The experts of a MoE layer: out_t = sum over the slots a of token t of weight_a * down_e silu-gated(gate_up_e x_t).
// T tokens, A slots sorted by expert, E experts, D width, F expert width.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace switchyard {

/// Slots as Routing holds them.
struct ExpertSlots {
  at::Tensor token_A;    // int64, token of each slot
  at::Tensor weight_A;   // fp32 (double for double), differentiable
  at::Tensor offsets_E;  // int64 [E + 1], slots of expert e are [offsets_E[e], offsets_E[e + 1])
};

/// The offsets of slots that fit E experts and the tokens of hidden_TD: one weight for each slot in the wide type of hidden_TD.
/// @throws ShapeError for others
[[nodiscard]] std::vector<int64_t> checked_offsets(const at::Tensor& hidden_TD, int64_t num_experts, const ExpertSlots& slots);

/// Differentiable in hidden_TD, both weights and weight_A, once (first_derivative.hpp). Tokens without slots get zero.
/// @param gate_up_EFD  [E, 2F, D]: gate in rows [0, F), up in [F, 2F)
/// @param down_EDF     [E, D, F]
/// @return [T, D] in the type of hidden_TD; each token's sum is taken in fp32 and rounded once
/// @throws ShapeError
[[nodiscard]] at::Tensor grouped_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                         const at::Tensor& down_EDF, const ExpertSlots& slots);
[[nodiscard]] at::Tensor grouped_experts_reference(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                                   const at::Tensor& down_EDF, const ExpertSlots& slots);

}  // namespace switchyard
