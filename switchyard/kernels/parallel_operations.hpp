#pragma once
// Loops over threads whose bodies call ATen's operations, not only arithmetic on numbers.

#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include <cstdint>
#include <optional>

namespace switchyard {

/// body(first, last) on parts of [0, count), without gradients. A thread of the pool does not share the caller's modes by itself, and
/// outside inference mode ATen refuses to write into the tensors that were made within it.
template <typename Body>
void parallel_operations(int64_t count, const Body& body) {
  const bool inference = c10::InferenceMode::is_enabled();
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    std::optional<c10::InferenceMode> mode_of_the_caller;
    if (inference) mode_of_the_caller.emplace();
    const c10::NoGradGuard no_grad;
    body(first, last);
  });
}

}  // namespace switchyard
