#pragma once
// The scope, in its one place: which segments' probabilities are averaged together, whose counts give their f, and how much
// each such group weighs. Nothing here knows a method or a layer.

#include <cstdint>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/step_plan.hpp"

namespace switchyard {

/// G groups make a step. A group has at least one valid token; segments without any belong to no group or add nothing to one.
struct BalanceGroup {
  SegmentRange averaged{};  // whose probabilities are averaged to P; these are disjoint
  SegmentRange counted{};   // whose counts give f; empty where f comes from earlier steps
  int64_t tokens = 0;       // T_g, valid tokens of `averaged`
  double weight = 0.0;      // w_g; the weights of a step sum to 1
};

/// Whether f comes from this step's counts or from BalanceState.
enum class FractionSource { ThisStep, EarlierSteps };
[[nodiscard]] FractionSource fraction_source(ScopeKind kind);

/// The groups of a step, in step order; none where the step has no valid token. Weights, before they are divided by their sum:
/// Tokens: T_g. Mean: 1, save for a last group of sequences(n) that has fewer than n: its T_g over the mean T_g of the others.
/// @param plan  of the segments of all ranks; where all are of one, the scopes `ranks` and `micro_batch` are the same
[[nodiscard]] std::vector<BalanceGroup> make_groups(const Scope& scope, GroupWeighting weighting, const StepPlan& plan);

/// True where coefficients exist only after the last forward of the step, so backward must wait (or counts come ahead).
[[nodiscard]] bool needs_whole_step(const Scope& scope, const StepPlan& plan);

}  // namespace switchyard
