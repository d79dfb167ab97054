#pragma once
// The toy step on several ranks (threads), and what one process that is told the same partition gets.

#include <cstdint>
#include <vector>

#include "toy_step.hpp"

namespace switchyard::toy {

/// lengths[m][r] lists the segments of micro-batch m on rank r; a negative number is that many padding tokens.
using RankedLengths = std::vector<std::vector<std::vector<int64_t>>>;

struct RankedLayout {
  Layout whole;                                  // tokens in step order: micro-batch, rank
  std::vector<Layout> ranks;                     // of each rank alone
  std::vector<std::vector<int64_t>> tokens_of_rank;  // index in `whole` of each token of a rank
};

/// @param num_domains  segments get domains 0, 1, 2, ... in turn; 0: none
[[nodiscard]] RankedLayout make_ranked_layout(const RankedLengths& lengths, int64_t num_domains = 0);

/// Uneven ranks, an empty rank in a micro-batch, padding only, a segment without tokens. 4 micro-batches.
[[nodiscard]] RankedLayout uneven_ranks(int64_t num_ranks, int64_t num_domains = 0);

enum class CountedBy { Caller, Nobody };  // who says how many micro-batches there are

struct RankedOptions {
  Partition partition = Partition::Separate;
  Order order = Order::Retain;
  GradientContract contract{};
  BalanceState state{};
  CountedBy counted = CountedBy::Caller;
};

/// What each rank got; gradients are those of the whole step, after what the contract says the callers do.
struct RankedResult {
  Gradients gradients;
  std::vector<StepResult> ranks;
};

/// Runs ranks as threads. Rethrows the first error of a rank.
[[nodiscard]] RankedResult run_ranked_step(const ToyModel& model, const RankedLayout& layout, const BalanceConfig& config,
                                           const RankedOptions& options);

}  // namespace switchyard::toy
