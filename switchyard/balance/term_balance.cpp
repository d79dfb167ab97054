#include "switchyard/balance/term_balance.hpp"

#include <algorithm>

#include "switchyard/balance/state.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNoGroup = -1;

std::vector<double> divided(std::vector<double> sums, int64_t tokens) {
  for (double& sum : sums) sum /= static_cast<double>(tokens);
  return sums;
}

}  // namespace

TermBalance::TermBalance(const BalanceTerm& term, GroupWeighting weighting, double per_layer, const BalanceShape& shape,
                         const BalanceState& state, StepTotals& totals)
    : term_(term), method_(find_method(term.method)), per_layer_(per_layer), shape_(shape), totals_(totals),
      from_earlier_(fraction_source(term.scope.kind) == FractionSource::EarlierSteps),
      group_of_segment_(totals.plan().whole_of_local.size(), kNoGroup) {
  SWITCHYARD_CHECK(method_.reads != SlopeReads::DomainMeans || totals.num_domains() > 0 || totals.plan().whole.step_tokens() == 0,
                   UsageError, "balancing method '", term.method,
                   "' compares domains, and no segment of the step has a label; set StepPlan::segment_domain");
  if (from_earlier_) earlier_LE_ = earlier_fractions(term.scope, state, shape);
  for (const BalanceGroup& group : make_groups(term.scope, weighting, totals.plan().whole)) {
    const SegmentRange local = totals.local_range(group.averaged);
    std::fill(group_of_segment_.begin() + local.begin, group_of_segment_.begin() + local.end,
              static_cast<int64_t>(groups_.size()));
    groups_.push_back({group, totals.holding(group.averaged)});
    if (method_.value == nullptr) continue;
    if (method_.reads == SlopeReads::Fractions) totals.need_counts(method_.counted, group.counted);
    if (method_.reads == SlopeReads::Means) totals.need_sums(token_sum(), group.averaged);
    if (method_.curvature != 0.0) totals.need_sums(TokenSum::SquaredProbs, group.averaged);
    if (method_.reads == SlopeReads::DomainMeans) {
      totals.need_domain_means(group.averaged);
      groups_.back().domain_sizes = totals.domain_sizes_N(group.averaged);
    }
  }
}

int64_t TermBalance::rows_per_layer() const { return method_.reads == SlopeReads::DomainMeans ? totals_.num_domains() : 1; }

// A group without tokens of this rank is left to others.
bool TermBalance::complete(const Group& group) const {
  if (group.holding == Holding::Elsewhere) return false;
  return totals_.complete(method_.reads == SlopeReads::Fractions ? group.counted : group.averaged);
}

std::vector<double> TermBalance::fractions_E(const BalanceGroup& group, int64_t layer) const {
  if (!from_earlier_) return fractions(totals_.counts_E(method_.counted, layer, group.counted));
  if (earlier_LE_.empty()) return std::vector<double>(static_cast<size_t>(shape_.num_experts), 0.0);
  return earlier_LE_[static_cast<size_t>(layer)];
}

std::vector<double> TermBalance::group_rows(const Group& group) const {
  const int64_t row_size = rows_per_layer() * shape_.num_experts;
  std::vector<double> rows(static_cast<size_t>(shape_.num_layers * row_size), 0.0);
  if (method_.slope == nullptr) return rows;
  const double weight = per_layer_ * group.weight;
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    const std::span<double> row(rows.data() + layer * row_size, static_cast<size_t>(row_size));
    if (method_.reads == SlopeReads::Fractions) {
      method_.slope({.fractions_E = fractions_E(group, layer)}, row);
    } else if (method_.reads == SlopeReads::Means) {
      method_.slope({.mean_probs_E = divided(totals_.sums_E(token_sum(), layer, group.averaged), group.tokens)}, row);
    } else {
      method_.slope({.domain_means_NE = totals_.domain_means_NE(layer, group.averaged),
                     .domain_sizes_N = group.domain_sizes},
                    row);
    }
    // A domain's mean is over sequences, so its tokens divide by their sequence's length in add_coefficients().
    const double divisor = method_.reads == SlopeReads::DomainMeans ? 1.0 : static_cast<double>(group.tokens);
    for (double& entry : row) entry *= weight / divisor;
  }
  return rows;
}

void TermBalance::update() {
  for (Group& group : groups_) {
    if (group.rows.empty() && complete(group)) group.rows = group_rows(group);
  }
}

bool TermBalance::known(const SegmentRange& local) const {
  if (!injects()) return true;
  return std::all_of(group_of_segment_.begin() + local.begin, group_of_segment_.begin() + local.end, [this](int64_t group) {
    // A group of another rank's tokens may span segments of this rank that have none.
    if (group == kNoGroup || groups_[static_cast<size_t>(group)].holding == Holding::Elsewhere) return true;
    return !groups_[static_cast<size_t>(group)].rows.empty();
  });
}

void TermBalance::add_coefficients(int64_t layer, int64_t local_segment, double factor, std::span<double> row_E) const {
  const int64_t index = group_of_segment_[static_cast<size_t>(local_segment)];
  if (index == kNoGroup) return;
  const Group& group = groups_[static_cast<size_t>(index)];
  if (group.holding == Holding::Elsewhere) return;
  int64_t row = layer * rows_per_layer();
  if (method_.reads == SlopeReads::DomainMeans) {
    const int64_t whole = totals_.plan().whole_of_local[static_cast<size_t>(local_segment)];
    const int64_t domain = totals_.plan().whole.domain_of(whole);
    const int64_t tokens = totals_.plan().whole.segment_tokens[static_cast<size_t>(whole)];
    if (domain < 0 || tokens == 0) return;
    factor /= static_cast<double>(group.domain_sizes[static_cast<size_t>(domain)] * tokens);
    row += domain;
  }
  const double* from_E = group.rows.data() + row * shape_.num_experts;
  for (double& entry : row_E) entry += factor * *from_E++;
}

double TermBalance::curvature(int64_t local_segment) const {
  const int64_t index = group_of_segment_[static_cast<size_t>(local_segment)];
  if (index == kNoGroup || !injects()) return 0.0;
  const Group& group = groups_[static_cast<size_t>(index)];
  return 2.0 * method_.curvature * per_layer_ * group.weight / static_cast<double>(group.tokens);
}

// What is linear in a rank's own sums is added up by all; the rest, which every rank can compute, by one.
double TermBalance::value_share(const Group& group, int64_t layer) const {
  const GatheredPlan& plan = totals_.plan();
  if (plan.replica > 0 || group.holding == Holding::Elsewhere) return 0.0;
  if (method_.reads == SlopeReads::Fractions) {
    const SegmentRange local = totals_.local_range(group.averaged);
    const std::vector<double> means_E = divided(totals_.ledger().sums_E(token_sum(), layer, local), group.tokens);
    return method_.value({.fractions_E = fractions_E(group, layer), .mean_probs_E = means_E});
  }
  const double share = group.holding == Holding::Shared ? 1.0 / static_cast<double>(plan.num_ranks) : 1.0;
  if (method_.reads == SlopeReads::DomainMeans) {
    return share * method_.value({.domain_means_NE = totals_.domain_means_NE(layer, group.averaged),
                                  .domain_sizes_N = group.domain_sizes});
  }
  const std::vector<double> means_E = divided(totals_.sums_E(token_sum(), layer, group.averaged), group.tokens);
  std::vector<double> squares_E;
  if (method_.curvature != 0.0) {
    squares_E = divided(totals_.sums_E(TokenSum::SquaredProbs, layer, group.averaged), group.tokens);
  }
  return share * method_.value({.mean_probs_E = means_E, .mean_squares_E = squares_E});
}

std::vector<double> TermBalance::value_shares_L() const {
  std::vector<double> values_L(static_cast<size_t>(shape_.num_layers), 0.0);
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    for (const Group& group : groups_) {
      values_L[static_cast<size_t>(layer)] += group.weight * value_share(group, layer);
    }
  }
  return values_L;
}

bool TermBalance::has_values() const {
  if (method_.value == nullptr || lacks_history()) return false;
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    if (!totals_.ledger().has_sums(token_sum(), layer)) return false;
  }
  return true;
}

}  // namespace switchyard
