#pragma once
// Experts divided over ranks: a token's row travels once to each rank that holds some of its experts; their weighted sum travels back.
// T tokens, D width, E experts over all ranks, F expert width, A slots (of this rank's tokens, or of its experts), R ranks.

#include <ATen/core/Tensor.h>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/kernels/experts.hpp"

namespace switchyard {

/// What grouped_experts() computes, where rank r holds experts [r E/R, (r + 1) E/R) and every rank has tokens of its own.
/// Differentiable in the same arguments, once (kernels/first_derivative.hpp); the gradient of this rank's weights is complete: it
/// holds the tokens of all ranks.
/// Sums are those of grouped_experts() taken in parts, one a rank, each rounded to the type of the rows.
/// Collective, forward and backward: an all-gather of counts, then all-to-all exchanges of rows and combine weights. Every rank
/// must run both, in the same order; a rank without tokens takes part with none.
/// @param hidden_TD    of this rank
/// @param gate_up_EFD  [E / R, 2F, D], this rank's
/// @param down_EDF     [E / R, D, F], this rank's
/// @param slots        of this rank's tokens, over all E experts
/// @param comm         outlives the backward
/// @throws ShapeError; CommError
[[nodiscard]] at::Tensor sharded_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                         const ExpertSlots& slots, Communicator& comm);
/// From plain operations and one differentiable exchange.
[[nodiscard]] at::Tensor sharded_experts_reference(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                                   const at::Tensor& down_EDF, const ExpertSlots& slots, Communicator& comm);

}  // namespace switchyard
