#include "switchyard/balance/groups.hpp"

#include <algorithm>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Names the group that a segment falls in; never falls along the step.
using GroupKey = std::pair<int64_t, int64_t>;
constexpr GroupKey kNoKey{-1, -1};

// @param ordinal  how many segments with tokens come before it: padding must not shift the borders
GroupKey group_key(const Scope& scope, int64_t ordinal, int64_t micro_batch, int64_t rank) {
  switch (scope.kind) {
    case ScopeKind::Sequence:
      return {ordinal, 0};
    case ScopeKind::Sequences:
      return {ordinal / scope.num_sequences, 0};
    case ScopeKind::MicroBatch:
      return {micro_batch, rank};
    case ScopeKind::Ranks:
    case ScopeKind::Prefix:
      return {micro_batch, 0};
    case ScopeKind::OptimizerBatch:
    case ScopeKind::PreviousStep:
    case ScopeKind::Ema:
      return {0, 0};
  }
  throw UsageError(join_text("scope kind ", static_cast<int>(scope.kind), " does not exist"));
}

// Counted segments of a group once `averaged` is complete.
SegmentRange counted_range(ScopeKind kind, const SegmentRange& averaged) {
  if (fraction_source(kind) == FractionSource::EarlierSteps) return {};
  return kind == ScopeKind::Prefix ? SegmentRange{0, averaged.end} : averaged;
}

// Full groups weigh 1; a last one that is short (fewer sequences than the others) weighs by its tokens.
double last_group_weight(const Scope& scope, const std::vector<BalanceGroup>& groups, int64_t num_sequences_seen) {
  const bool short_group = scope.kind == ScopeKind::Sequences && num_sequences_seen % scope.num_sequences != 0;
  if (!short_group || groups.size() == 1) return 1.0;
  int64_t full_tokens = 0;
  for (size_t group = 0; group + 1 < groups.size(); ++group) full_tokens += groups[group].tokens;
  const double mean_tokens = static_cast<double>(full_tokens) / static_cast<double>(groups.size() - 1);
  return static_cast<double>(groups.back().tokens) / mean_tokens;
}

void set_weights(const Scope& scope, GroupWeighting weighting, int64_t num_sequences_seen, std::vector<BalanceGroup>& groups) {
  double sum = 0.0;
  for (BalanceGroup& group : groups) {
    group.weight = weighting == GroupWeighting::Tokens ? static_cast<double>(group.tokens) : 1.0;
    if (weighting == GroupWeighting::Mean && &group == &groups.back()) {
      group.weight = last_group_weight(scope, groups, num_sequences_seen);
    }
    sum += group.weight;
  }
  for (BalanceGroup& group : groups) group.weight /= sum;
}

}  // namespace

FractionSource fraction_source(ScopeKind kind) {
  return kind == ScopeKind::PreviousStep || kind == ScopeKind::Ema ? FractionSource::EarlierSteps : FractionSource::ThisStep;
}

std::vector<BalanceGroup> make_groups(const Scope& scope, GroupWeighting weighting, const StepPlan& plan) {
  SWITCHYARD_CHECK(scope.kind != ScopeKind::Sequences || scope.num_sequences >= 1, UsageError, "scope sequences(",
                   scope.num_sequences, "): expected at least 1 sequence");
  std::vector<BalanceGroup> groups;
  GroupKey open_group = kNoKey;
  int64_t ordinal = 0;
  for (int64_t segment = 0; segment < plan.num_segments(); ++segment) {
    const int64_t tokens = plan.segment_tokens[static_cast<size_t>(segment)];
    if (tokens == 0) continue;
    const int64_t micro_batch = plan.segment_micro_batch[static_cast<size_t>(segment)];
    const GroupKey key = group_key(scope, ordinal++, micro_batch, plan.rank_of(segment));
    if (key != open_group) groups.push_back({.averaged = {segment, segment}});
    open_group = key;
    groups.back().averaged.end = segment + 1;
    groups.back().tokens += tokens;
  }
  for (BalanceGroup& group : groups) group.counted = counted_range(scope.kind, group.averaged);
  set_weights(scope, weighting, ordinal, groups);
  return groups;
}

bool needs_whole_step(const Scope& scope, const StepPlan& plan) {
  const std::vector<BalanceGroup> groups = make_groups(scope, GroupWeighting::Tokens, plan);
  return std::any_of(groups.begin(), groups.end(), [&plan](const BalanceGroup& group) {
    // The forward that holds the group's first averaged segment ends here; counts beyond it come too late for its backward.
    const auto forward_end = std::upper_bound(plan.forward_begin.begin(), plan.forward_begin.end(), group.averaged.begin);
    return forward_end != plan.forward_begin.end() && group.counted.end > *forward_end;
  });
}

}  // namespace switchyard
