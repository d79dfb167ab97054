#pragma once
// The products of grouped_experts() on the rows of the slots, without autograd and before the slots of a token are added up: by
// tiles where the processor has them (tile_experts.hpp), else by ATen. Letters as in experts.hpp.

#include <ATen/core/Tensor.h>

#include <span>

namespace switchyard {

struct ExpertRows {
  // Before the nonlinearity, for the backward. [A, 2F], or more rows where the products padded each expert's; pass it on unread.
  at::Tensor gate_up;
  at::Tensor out_AD;   // of each slot, not yet weighted
};
/// @param token_A  row of hidden_TD of each slot, in [0, T)
/// @param offsets  E + 1 slots, rising from 0 to A
[[nodiscard]] ExpertRows expert_rows(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                     const at::Tensor& token_A, std::span<const int64_t> offsets);

struct ExpertRowsGradients {
  at::Tensor rows_AD;  // of the hidden row of each slot
  at::Tensor gate_up_EFD, down_EDF, weight_A;
};
/// All of them: to leave one out would save little of the work on a block.
/// @param gate_up   as expert_rows() gave it
/// @param d_out_TD  of the sums over the slots of each token
[[nodiscard]] ExpertRowsGradients expert_rows_backward(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                                       const at::Tensor& down_EDF, const at::Tensor& token_A,
                                                       const at::Tensor& weight_A, std::span<const int64_t> offsets,
                                                       const at::Tensor& gate_up, const at::Tensor& d_out_TD);

}  // namespace switchyard
