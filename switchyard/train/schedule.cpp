#include "switchyard/train/schedule.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

/// How far a decay that ends with the last step has come: 0 before its first step, 1 at the last one.
double decay_progress(int64_t step, int64_t first_step, int64_t total_steps) {
  if (step < first_step) return 0.0;
  return static_cast<double>(step + 1 - first_step) / static_cast<double>(total_steps - first_step);
}

double ratio_after_warmup(const OptimizerConfig& config, int64_t step, int64_t total_steps) {
  const double drop = 1.0 - config.min_ratio;
  switch (config.schedule) {
    case ScheduleKind::Constant:
      return 1.0;
    case ScheduleKind::Cosine: {
      const double progress = decay_progress(step, config.warmup_steps, total_steps);
      return config.min_ratio + drop * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
    }
    case ScheduleKind::Wsd: {
      const auto decay_steps = std::llround(config.decay_fraction * static_cast<double>(total_steps));
      const int64_t first_step = std::max<int64_t>(config.warmup_steps, total_steps - decay_steps);
      return 1.0 - drop * decay_progress(step, first_step, total_steps);
    }
  }
  throw UsageError("learning_rate_at: a schedule that is not in ScheduleKind");
}

}  // namespace

double learning_rate_at(const OptimizerConfig& config, int64_t step, int64_t total_steps) {
  SWITCHYARD_CHECK(step >= 0 && step < total_steps, UsageError, "learning_rate_at: step ", step,
                   " was asked of a run of ", total_steps, " steps; expected 0 <= step < ", total_steps);
  if (step < config.warmup_steps) {
    return config.learning_rate * static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  }
  return config.learning_rate * ratio_after_warmup(config, step, total_steps);
}

}  // namespace switchyard
