#pragma once
// The reference router's table: which share of a domain's tokens goes to which expert.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace switchyard {

/// pi_NE, double [N, E]: probability that a token of a domain is sent to an expert. Entries in [0, 1], rows sum to K, columns
/// to N K / E (exact balance when domains weigh equally), minimising sum pi * (circular distance of (d + .5) / N and
/// (e + .5) / E)^2. Entries are multiples of 1 / E. Own definition ("prescribed routing"); not claimed to maximise the
/// mutual information.
/// @throws UsageError unless N >= 1 and 1 <= K <= E
[[nodiscard]] at::Tensor prescribed_share_NE(int64_t num_domains, int64_t num_experts, int64_t num_chosen);

/// The same times E, int64 [N, E]: rows sum to K E, entries in [0, E].
[[nodiscard]] at::Tensor prescribed_units_NE(int64_t num_domains, int64_t num_experts, int64_t num_chosen);

}  // namespace switchyard
