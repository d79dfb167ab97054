#pragma once
// Forwards and backwards of one optimizer step, in the order that the balancing scope needs. The gradient contract is Sum:
// the loss is the sum of cross-entropies over all scored targets of the step, divided by their number, so each token weighs
// the same however the step is cut into micro-batches and dealt to ranks. M micro-batches, L MoE layers, E experts.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/data/batch.hpp"
#include "switchyard/model/decoder.hpp"
#include "switchyard/train/execution_config.hpp"

namespace switchyard {

/// Called before each forward of the model. Tests use it to break what must be detected.
using ForwardHook = std::function<void(RoutingPhase phase, int64_t forward)>;

struct StepResult {
  double loss = 0.0;        // cross-entropy, nats per scored target of the step, over all ranks; balancing excluded
  int64_t tokens = 0;       // valid tokens, over all ranks
  int64_t targets = 0;      // scored targets, over all ranks
  BalanceValues balance;
  std::vector<double> simbal_L;  // SimBal of each router, raw; empty if its coefficient is 0
  at::Tensor step_counts_LE;          // int64
  at::Tensor micro_batch_counts_MLE;  // int64
  bool lacks_history = false;         // the scope of a loss takes counts of earlier steps and there are none: it does not act
  /// Under OnReplayMismatch::Replay: tokens, summed over layers, whose own choice in the second forward would have been
  /// another set of experts than the recorded one that was used.
  int64_t replay_differences = 0;
};

/// The scores that a rule's offsets are added to.
[[nodiscard]] SelectionScore selection_score(SelectionRule rule);

/// What rank `rank` of `num_ranks` takes of a step: micro-batches rank, rank + num_ranks, ..., numbered anew from 0. So the order
/// of the step (micro-batch, rank) is the order in which one process has them.
/// @throws UsageError unless the ranks divide the micro-batches
[[nodiscard]] std::vector<Batch> share_of_rank(const std::vector<Batch>& micro_batches, int64_t rank, int64_t num_ranks);

/// The forwards of a step over these batches: one each, or one for all. Segments keep their order and micro-batch.
[[nodiscard]] std::vector<Batch> pack_forwards(const std::vector<Batch>& micro_batches, ForwardPacking packing);

/// A segment's domain is that of its first token.
/// @param num_micro_batches  M of this rank, micro-batches without a valid token included
[[nodiscard]] StepPlan make_step_plan(int64_t step, const std::vector<Batch>& forwards, int64_t num_micro_batches);

/// Leaves the gradient of the step in Parameter::grad (clearing what was there) and the step's statistics in `state`.
/// Weights are not changed. Collective. The gradient is this rank's part: the sum over ranks is that of the step
/// (train/gradients.hpp adds it up).
/// @param micro_batches  of this rank, numbered from 0; the same number on each
/// @param execution      its order, recomputation, packing and answer to a mismatch; the rest is the caller's
/// @param step   0-based, key of the random streams of the routers
/// @param ranks  that share the step
/// @throws StateError when the loss is not finite, or a routing does not replay; `state` is unchanged then
[[nodiscard]] StepResult run_step(Decoder& model, const BalanceConfig& config, BalanceState& state,
                                  const std::vector<Batch>& micro_batches, const ExecutionConfig& execution,
                                  uint64_t seed, int64_t step, const BalanceRanks& ranks,
                                  const ForwardHook& before_forward = {});

/// Adds the losses of weights alone (SimBal) to gradients and result: once a step, after the gradients were summed over ranks.
void add_parameter_losses(Decoder& model, const BalanceConfig& config, StepResult& result);

}  // namespace switchyard
