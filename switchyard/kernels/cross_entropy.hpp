#pragma once
// Output head and cross-entropy in one, a chunk of tokens at a time: the logits [T, V] never exist as a whole.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard {

/// Sum over tokens of logsumexp(logits) - logits[target], in nats. Softmax and sum in fp32 (double for double).
/// Differentiable in both tensors, once (first_derivative.hpp); the gradients are computed with the loss, chunk by chunk.
/// @param hidden_TD, head_VD  of one type
/// @param targets_T           int64 in [0, V), or `ignored`: no loss there
/// @return scalar, fp32 (double for double)
/// @throws ShapeError also for a target that is out of range
[[nodiscard]] at::Tensor linear_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& head_VD,
                                              const at::Tensor& targets_T, int64_t ignored);
[[nodiscard]] at::Tensor linear_cross_entropy_reference(const at::Tensor& hidden_TD, const at::Tensor& head_VD,
                                                        const at::Tensor& targets_T, int64_t ignored);

/// The loss of each token, [T] fp32 (double for double), 0 where ignored; no autograd.
[[nodiscard]] at::Tensor linear_token_losses(const at::Tensor& hidden_TD, const at::Tensor& head_VD,
                                             const at::Tensor& targets_T, int64_t ignored);

}  // namespace switchyard
