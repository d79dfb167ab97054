#include "switchyard/balance/step_plan.hpp"

#include <algorithm>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

void check_segments(const StepPlan& plan) {
  const size_t num_segments = plan.segment_tokens.size();
  SWITCHYARD_CHECK(plan.segment_micro_batch.size() == num_segments, UsageError, "step ", plan.step, ": ", num_segments,
                   " segment_tokens and ", plan.segment_micro_batch.size(),
                   " segment_micro_batch; expected one of each per segment");
  for (const std::vector<int64_t>* labels : {&plan.segment_rank, &plan.segment_domain}) {
    SWITCHYARD_CHECK(labels->empty() || labels->size() == num_segments, UsageError, "step ", plan.step, ": ", labels->size(),
                     " ranks or domains of ", num_segments, " segments; expected one per segment, or none");
  }
  int64_t last_micro_batch = 0;
  for (size_t segment = 0; segment < num_segments; ++segment) {
    SWITCHYARD_CHECK(plan.segment_tokens[segment] >= 0, UsageError, "step ", plan.step, ": segment ", segment, " has ",
                     plan.segment_tokens[segment], " tokens; expected 0 or more");
    SWITCHYARD_CHECK(plan.segment_micro_batch[segment] >= last_micro_batch, UsageError, "step ", plan.step, ": segment ",
                     segment, " is of micro-batch ", plan.segment_micro_batch[segment], " after one of ", last_micro_batch,
                     "; segments must come in the order of their micro-batches, which start at 0");
    last_micro_batch = plan.segment_micro_batch[segment];
    if (segment == 0 || plan.segment_micro_batch[segment - 1] != last_micro_batch || plan.segment_rank.empty()) continue;
    SWITCHYARD_CHECK(plan.segment_rank[segment] >= plan.segment_rank[segment - 1], UsageError, "step ", plan.step, ": segment ",
                     segment, " is of rank ", plan.segment_rank[segment], " after one of ", plan.segment_rank[segment - 1],
                     " in the same micro-batch; segments of a micro-batch must come in the order of their ranks");
  }
}

void check_forwards(const StepPlan& plan) {
  const std::vector<int64_t>& begin = plan.forward_begin;
  SWITCHYARD_CHECK(begin.size() >= 2 && begin.front() == 0 && begin.back() == plan.num_segments() &&
                       std::is_sorted(begin.begin(), begin.end()),
                   UsageError, "step ", plan.step, ": forward_begin must rise from 0 to the number of segments, ",
                   plan.num_segments(), ", with one more entry than there are forwards");
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    const auto first = static_cast<size_t>(begin[static_cast<size_t>(forward)]);
    const auto end = static_cast<size_t>(begin[static_cast<size_t>(forward) + 1]);
    if (first == end) continue;
    SWITCHYARD_CHECK(first == 0 || plan.segment_micro_batch[first - 1] != plan.segment_micro_batch[first], UsageError, "step ",
                     plan.step, ": micro-batch ", plan.segment_micro_batch[first], " is split before forward ", forward,
                     "; a forward must hold whole micro-batches");
    SWITCHYARD_CHECK(
        plan.contract.micro_batches != Averaging::ByTokens ||
            plan.segment_micro_batch[first] == plan.segment_micro_batch[end - 1],
        UsageError, "step ", plan.step, ": forward ", forward, " holds micro-batches ", plan.segment_micro_batch[first], " to ",
        plan.segment_micro_batch[end - 1],
        ", so their gradients cannot be weighed by tokens one by one; use the contract Sum or Mean, or one forward each");
  }
}

}  // namespace

int64_t StepPlan::micro_batch_count() const {
  const int64_t seen = segment_micro_batch.empty() ? 0 : segment_micro_batch.back() + 1;
  return num_micro_batches == 0 ? seen : num_micro_batches;
}

int64_t StepPlan::step_tokens() const { return std::accumulate(segment_tokens.begin(), segment_tokens.end(), int64_t{0}); }

SegmentRange StepPlan::segments(int64_t forward) const {
  return {forward_begin[static_cast<size_t>(forward)], forward_begin[static_cast<size_t>(forward) + 1]};
}

std::string StepPlan::place(int64_t forward, int64_t layer) const {
  return join_text("step ", step, ", forward ", forward, ", layer ", layer);
}

int64_t StepPlan::rank_of(int64_t segment) const {
  return segment_rank.empty() ? 0 : segment_rank[static_cast<size_t>(segment)];
}

int64_t StepPlan::domain_of(int64_t segment) const {
  return segment_domain.empty() ? -1 : segment_domain[static_cast<size_t>(segment)];
}

void check_plan(const StepPlan& plan) {
  check_segments(plan);
  check_forwards(plan);
  SWITCHYARD_CHECK(plan.segment_micro_batch.empty() || plan.micro_batch_count() > plan.segment_micro_batch.back(), UsageError,
                   "step ", plan.step, ": num_micro_batches is ", plan.num_micro_batches, " but a segment is of micro-batch ",
                   plan.segment_micro_batch.back(), "; micro-batches are numbered from 0");
}

std::vector<double> contract_factors(const StepPlan& plan, const WholeStep& whole) {
  const auto rank_tokens = static_cast<double>(plan.step_tokens());
  double factor_of_rank = 1.0;
  if (plan.contract.ranks == Averaging::Mean) factor_of_rank = static_cast<double>(whole.num_ranks);
  if (plan.contract.ranks == Averaging::ByTokens && rank_tokens > 0) {
    factor_of_rank = static_cast<double>(whole.tokens) / rank_tokens;
  }
  if (plan.contract.micro_batches == Averaging::Mean) factor_of_rank *= static_cast<double>(plan.micro_batch_count());
  std::vector<double> factors(plan.segment_tokens.size(), factor_of_rank);
  if (plan.contract.micro_batches != Averaging::ByTokens) return factors;

  std::vector<int64_t> tokens_M(static_cast<size_t>(plan.micro_batch_count()), 0);
  for (size_t segment = 0; segment < factors.size(); ++segment) {
    tokens_M[static_cast<size_t>(plan.segment_micro_batch[segment])] += plan.segment_tokens[segment];
  }
  for (size_t segment = 0; segment < factors.size(); ++segment) {
    const int64_t tokens = tokens_M[static_cast<size_t>(plan.segment_micro_batch[segment])];
    if (tokens > 0) factors[segment] *= rank_tokens / static_cast<double>(tokens);
  }
  return factors;
}

}  // namespace switchyard
