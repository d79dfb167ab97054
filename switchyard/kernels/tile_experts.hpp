#pragma once
// The products of grouped_experts() by tiles, with what lies between them done while it is in cache. Letters as in experts.hpp.

#include <ATen/core/Tensor.h>

#include <span>

namespace switchyard {

/// bf16 on a processor with tile products, both widths even.
[[nodiscard]] bool has_tile_experts(const at::Tensor& hidden_TD, const at::Tensor& down_EDF);

struct TileExperts {
  at::Tensor gate_up_AF;  // [A, 2F], before the nonlinearity
  at::Tensor out_AD;      // of each slot, not yet weighted
};
/// @param token_A  in [0, T)
/// @param offsets  E + 1 slots, rising from 0 to A
[[nodiscard]] TileExperts tile_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                       const at::Tensor& token_A, std::span<const int64_t> offsets);

struct TileExpertsGradients {
  at::Tensor rows_AD;  // of the hidden row of each slot
  at::Tensor gate_up_EFD, down_EDF, weight_A;
};
/// @param gate_up_AF  as tile_experts() gave it
[[nodiscard]] TileExpertsGradients tile_experts_backward(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                                         const at::Tensor& down_EDF, const at::Tensor& token_A,
                                                         const at::Tensor& weight_A, std::span<const int64_t> offsets,
                                                         const at::Tensor& gate_up_AF, const at::Tensor& d_out_TD);

}  // namespace switchyard
