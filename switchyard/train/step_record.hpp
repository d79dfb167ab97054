#pragma once
// What the run log says about a step and a run, computed from their results.

#include <string>

#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/run_config.hpp"
#include "switchyard/train/step.hpp"

namespace switchyard {

/// Loss, balancing and MaxVio. Step number, tokens, learning rate, gradient norm and times are left to the caller.
[[nodiscard]] StepRecord make_step_record(const StepResult& result, const BalanceConfig& config);

/// What follows from the configuration, this build and this machine; the rest is left to the caller.
[[nodiscard]] StartRecord make_start_record(const RunConfig& config, const std::string& command);

}  // namespace switchyard
