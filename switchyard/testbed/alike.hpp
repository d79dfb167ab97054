#pragma once
// What runs must have in common for a metric of theirs to be one measure: the held-out text, for what experts do their number, and
// for micro-batches their size. Told from the configurations, so before anything runs.

#include <string>
#include <string_view>
#include <vector>

#include "switchyard/testbed/config.hpp"

namespace switchyard {

/// Refuses a claim about the difference of two arms that do not measure its metric alike on a seed that both have.
/// @throws ConfigError naming claim, arms, keys and values
void check_claims_compare(const TestbedConfig& config, const std::vector<PlannedRun>& runs);

/// A sentence for each key in which arms differ although some of their numbers rest on it.
[[nodiscard]] std::vector<std::string> unlike_notes(const std::vector<PlannedRun>& runs);

/// "arm a", "arms a and b", "arms a, b and c". Each name once.
[[nodiscard]] std::string arms_text(const std::vector<std::string>& arms);

}  // namespace switchyard
