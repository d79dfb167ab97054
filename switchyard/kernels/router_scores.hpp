#pragma once
// A router's scores and its choice. fp32 also where all else is bf16.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard {

/// hidden_TD * weight_ED^T, in fp32 (double where hidden is double); differentiable in both, by tiles once (first_derivative.hpp).
/// By tiles, which bf16 and fp32 take where the processor has them in fp32, equal hidden states have the same scores to the bit, whatever
/// tokens are with them, and gradients the same bits on any number of threads.
/// @param hidden_TD  bf16, fp32 or double; its gradient is summed in fp32 and rounded once
/// @param weight_ED  fp32 or double
[[nodiscard]] at::Tensor router_scores(const at::Tensor& hidden_TD, const at::Tensor& weight_ED);
[[nodiscard]] at::Tensor router_scores_reference(const at::Tensor& hidden_TD, const at::Tensor& weight_ED);

/// The K largest scores of each row, the largest first, of equal ones the first: int64 [T, K]. Where scores are NaN
/// any, but none twice. No autograd.
/// @param scores_TE   fp32 or double
/// @param num_chosen  K, from 1 to E
/// @throws ShapeError
[[nodiscard]] at::Tensor largest_ids(const at::Tensor& scores_TE, int64_t num_chosen);

}  // namespace switchyard
