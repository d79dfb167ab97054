#pragma once
// What a step is begun with, as named numbers: all ranks must have most of them in common, and saved progress of a step must have
// all of them in common with the step that takes it up.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/progress.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/balance/state.hpp"
#include "switchyard/balance/step_plan.hpp"

namespace switchyard {

/// Something that must be the same in two places: {"experts", 16}.
struct AgreedFact {
  std::string name;
  int64_t value = 0;
};

/// Of sizes, settings and history, which every rank must have. As many whatever the settings, for they travel before anybody knows
/// whether those agree.
[[nodiscard]] std::vector<AgreedFact> facts_of(const BalanceConfig& config, const BalanceShape& shape, const BalanceState& state);

/// Of the plan, the contract among them; its segments are not, which are each rank's own.
[[nodiscard]] std::vector<AgreedFact> facts_of(const StepPlan& plan);

/// Where a rank stands.
struct RankPlace {
  int64_t ranks = 1;
  int64_t data_rank = 0;
  int64_t replica = 0;
};

/// All that what a rank counts, and what is made of it, depend on; but for the lengths of the segments.
[[nodiscard]] std::vector<AgreedFact> facts_of(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan,
                                               const BalanceState& state, const RankPlace& place);

void put_facts(StepProgress& progress, const std::vector<AgreedFact>& facts);
/// @throws ShapeError naming the first fact in which saved progress differs, with both values
void check_facts(const StepProgress& progress, const std::vector<AgreedFact>& facts);

}  // namespace switchyard
