#pragma once
// Rows of tokens to their slots, and back. A slots, T tokens, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

inline constexpr int64_t kNoToken = -1;  // of a slot that only fills up

/// out[a] = rows_TD[token_A[a]]; zeros where the token is kNoToken. No autograd.
/// @throws ShapeError for a token out of range
[[nodiscard]] at::Tensor gather_rows(const at::Tensor& rows_TD, const at::Tensor& token_A);

/// out[t] = sum over slots a of token t, in slot order, of weight_A[a] * rows_AD[a]. Summed in fp32 (double for double) and
/// rounded once; the same bits for any number of threads. No autograd.
/// @param weight_A  fp32 (double for double); undefined: ones
/// @param token_A   int64 in [0, num_tokens), or kNoToken: left out
/// @throws ShapeError for a token out of range
[[nodiscard]] at::Tensor combine_rows(const at::Tensor& rows_AD, const at::Tensor& weight_A, const at::Tensor& token_A,
                                      int64_t num_tokens);

}  // namespace switchyard
