#pragma once
// Activation recomputation: a layer keeps only its input and runs again in backward. Same kernels, same inputs: the
// gradients have the same bits as without.

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace switchyard {

/// Runs `first` without recording gradients; in backward runs `again` on the same input and differentiates that.
/// @param hidden  may be a leaf, a result or without gradient
/// @param leaves  every tensor with gradient that `again` reads besides its argument
/// @param first, again  the same function of the hidden states, apart from side effects that must happen once. `again` and
///     what it refers to must live until the backward is done.
[[nodiscard]] at::Tensor run_checkpointed(const at::Tensor& hidden, const std::vector<at::Tensor>& leaves,
                                          const std::function<at::Tensor(const at::Tensor&)>& first,
                                          std::function<at::Tensor(const at::Tensor&)> again);

}  // namespace switchyard
