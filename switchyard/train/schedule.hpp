#pragma once
// The learning rate of each step: a pure function, so a resumed run needs no state for it.

#include <cstdint>

#include "switchyard/train/optimizer_config.hpp"

namespace switchyard {

/// Learning rate of the update that ends step `step` (0-based). Warm-up rises in equal parts and reaches the peak at step
/// warmup_steps - 1; the last step (total_steps - 1) has min_ratio times the peak, except for Constant.
/// @param step  in [0, total_steps)
/// @throws UsageError when step is out of range
[[nodiscard]] double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t total_steps);

}  // namespace switchyard
