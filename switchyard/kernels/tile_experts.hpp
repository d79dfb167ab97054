#pragma once
// The products of expert_rows() by tiles, with what lies between them done while it is in cache. Letters as in experts.hpp.

#include <ATen/core/Tensor.h>

#include <span>

#include "switchyard/kernels/expert_rows.hpp"

namespace switchyard {

/// bf16 or fp32 on a processor with tile products of them; in bf16 both widths are even.
[[nodiscard]] bool has_tile_experts(const at::Tensor& hidden_TD, const at::Tensor& down_EDF);

/// As expert_rows() and expert_rows_backward(); here gate_up is [A, 2F] always.
[[nodiscard]] ExpertRows tile_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                      const at::Tensor& token_A, std::span<const int64_t> offsets);
[[nodiscard]] ExpertRowsGradients tile_experts_backward(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                                        const at::Tensor& down_EDF, const at::Tensor& token_A,
                                                        const at::Tensor& weight_A, std::span<const int64_t> offsets,
                                                        const at::Tensor& gate_up_AF, const at::Tensor& d_out_TD);

}  // namespace switchyard
