#pragma once
// What the ranks tell each other about a step before its first forward, so that every rank knows all its segments.
// S segments, M micro-batches, R ranks.

#include <cstdint>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/balance/state.hpp"
#include "switchyard/balance/step_facts.hpp"
#include "switchyard/balance/step_plan.hpp"
#include "switchyard/comm/communicator.hpp"

namespace switchyard {

/// Which part of the step's tokens a rank holds: how groups are declared. Data parallel: nothing to say. Context (or sequence)
/// parallel: the ranks of one set of sequences give the same data_rank; each plans its own part of every segment. Tensor
/// parallel with whole copies: all but one give a replica above 0; they get coefficients and count nowhere. Pipeline: the
/// communicator holds the ranks of one stage (BalanceShape::total_layers has the layers of all stages).
struct RankShare {
  int64_t data_rank = -1;  // -1: the rank in the communicator
  int64_t replica = 0;
};

/// The step over all ranks, as one process that is told the same partition would plan it. Where the ranks left the number of
/// micro-batches open, whole.micro_batch_count() is the largest of theirs.
struct GatheredPlan {
  StepPlan whole;                           // forward_begin: segments of all ranks in each forward
  std::vector<int64_t> whole_of_local;      // [S of this rank], rising
  std::vector<int64_t> holders_of_segment;  // ranks that hold tokens of each segment of `whole`; replicas do not
  int64_t num_ranks = 1;                    // that hold tokens of their own
  int64_t data_rank = 0;                    // of this rank
  int64_t replica = 0;                      // of this rank
};

/// Two small all-gathers. Collective.
/// @throws CommError on every rank, naming ranks and values, where facts, the number of forwards or micro-batches, the forward
///         of a micro-batch, or the segments of ranks with one data_rank differ
[[nodiscard]] GatheredPlan gather_plan(const StepPlan& local, const RankShare& share, const std::vector<AgreedFact>& facts,
                                       Communicator& comm);

/// The same for a step of StepBalance: checks its arguments first, and that the ranks ask for the same losses and have the same
/// history.
/// @throws ConfigError, UsageError, ShapeError with one rank, CommError on every rank with several
[[nodiscard]] GatheredPlan gather_plan(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& local,
                                       const BalanceState& state, const RankShare& share, Communicator& comm);

}  // namespace switchyard
