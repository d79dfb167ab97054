#pragma once
// Balancing of one optimizer step: counts in, coefficients out. S segments of a forward, L MoE layers, E experts,
// T tokens, M micro-batches, R ranks.
//
// The life of a step, as the trainer and the tests write it:
//
//   StepBalance balance(config, shape, plan, state);
//   for each forward f:            // and again under recomputation, or first as a pre-pass
//     for each layer l:            // inside the router and the MoE layer
//       logits = balance.through_logits(f, l, logits, segment_T);
//       probs  = balance.through_probs(f, l, probs, segment_T);   // identity; its backward adds coefficients c[l, g(t), e]
//       balance.record(f, l, routing, segment_T);                 // idempotent by (step, f, l)
//     balance.close_forward(f);    // sends counts that other ranks need, all layers in one all-reduce
//     ... more of the forward: what happens here hides the message ...
//     balance.await_forward(f);    // coefficients that are known now are filled in; with one rank close_forward() does it
//   balance.close_counting();      // after the last forward: the rest
//   ... backward of each forward, in any order after its coefficients are filled ...
//   balance.finish(state);         // the step's counts become the previous step
//
// To stop in the middle: saved = balance.progress() between forwards; later a new StepBalance with the same arguments, then
// resume(saved), then the forwards that are left, and again those whose backward is still to come.
//
// A backward that reaches an unfilled coefficient is a StateError, never a silent zero. With several ranks the constructor,
// resume(), close_forward(), await_forward(), close_counting() and finish() are collective: all ranks call them in the same
// order. A problem of one rank (its input, a forward that ran again and counted differently) is kept until the next of them and
// is then a CommError with its text on every rank.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/gathered_plan.hpp"
#include "switchyard/balance/progress.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/balance/state.hpp"
#include "switchyard/balance/step_plan.hpp"
#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/routing.hpp"

namespace switchyard {

/// One active balancing loss of a step.
struct TermValues {
  BalanceTerm term;
  std::vector<double> value_L;  // raw, lambda not applied; empty where the scope has no history yet or routers no scores
};

/// Values of a finished step, for the log, over all ranks. Raw: lambda not applied.
struct BalanceValues {
  std::vector<TermValues> terms;  // in the order of active_terms()
  /// Of the config's first `lbl` entry: 1 where choices or probabilities are even over experts. Empty in steps in which that
  /// entry does not act or has no history yet, and where routers give no scores.
  std::vector<double> lbl_L;
  std::vector<double> z_loss_L;   // mean over valid tokens of logsumexp^2; empty if z_coefficient is 0
  std::vector<double> orthogonality_L;  // mean over valid tokens of orthogonality_loss(); empty if its coefficient is 0
  double weighted_loss = 0.0;     // what these added to the training loss, lambda applied, over this rank's layers
};

/// The ranks that share a step, and what this one holds of it.
struct BalanceRanks {
  Communicator& comm;  // outlives the step
  RankShare share{};
};

class StepBalance {
 public:
  /// Keeps what it needs of `state`.
  /// @throws ConfigError, UsageError or ShapeError for a config, plan or state that cannot be
  StepBalance(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan, const BalanceState& state);
  /// @param plan  of this rank's segments
  /// @throws CommError also, on every rank, where sizes, losses or forwards of the ranks do not fit together
  StepBalance(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan, const BalanceState& state,
              const BalanceRanks& ranks);
  ~StepBalance();
  StepBalance(StepBalance&&) noexcept;
  StepBalance& operator=(StepBalance&&) noexcept;

  /// Identities; their backward adds the loss's gradient, so go on with what they return. Without balancing they return their
  /// argument unchanged; so they do on ranks where it cannot be used, until the next collective call tells all.
  /// @param segment_T  the same that record() is given; int64, -1 for padding
  [[nodiscard]] at::Tensor through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                          const at::Tensor& segment_T);
  [[nodiscard]] at::Tensor through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE,
                                         const at::Tensor& segment_T);

  /// Whether through_outputs() is due in every layer of every forward.
  [[nodiscard]] bool wants_outputs() const;
  /// Returns out_TD; backward adds the gradient of the orthogonality loss to that of loss_T. Counted once however often run.
  /// @param out_TD  what the layer adds to the residual stream; any tensor that the loss depends on
  /// @param loss_T  orthogonality_loss() of each token's expert outputs, with autograd; what padding rows hold is ignored
  [[nodiscard]] at::Tensor through_outputs(int64_t forward, int64_t layer, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                           const at::Tensor& segment_T);

  /// Added to the layer's scores for choosing, fp32 [E]: probabilities under a bias rule, logits under a quantile rule.
  /// Undefined without a rule.
  [[nodiscard]] at::Tensor selection_offsets_E(int64_t layer) const;

  /// True where a loss that acts takes f from earlier steps and there are none yet: this step lacks it (tell the user).
  [[nodiscard]] bool lacks_history() const;
  /// True where coefficients of a loss that acts exist only after the last forward, so backward must wait (or counts come ahead).
  [[nodiscard]] bool needs_whole_step() const;

  /// Takes the counts of a forward. A repeat with equal counts changes nothing; with other counts it is a StateError.
  void record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T);
  void close_forward(int64_t forward);
  void await_forward(int64_t forward);
  void close_counting();

  /// What this rank has counted so far, bit for bit; what was not closed yet is run again after resume().
  [[nodiscard]] StepProgress progress() const;
  /// On a step that has recorded nothing. Counts of closed forwards go to the other ranks again; recorded forwards may run again
  /// (their second half, or the whole), and are then checked against what was saved.
  /// @throws ShapeError when it was saved with other arguments, or on another rank; StateError when this step has begun, or ranks saved at
  /// different forwards; with several ranks CommError on all of them
  void resume(const StepProgress& progress);

  /// Valid tokens of the step, over all ranks.
  [[nodiscard]] int64_t step_tokens() const;

  /// Valid after close_counting(), of all ranks: int64 [L, E] over the whole step, and per micro-batch and data rank, in step
  /// order, [M * R, L, E].
  [[nodiscard]] at::Tensor step_counts_LE() const;
  [[nodiscard]] at::Tensor micro_batch_counts_MLE() const;
  [[nodiscard]] BalanceValues values() const;
  /// After the last backward. `state` is unchanged where it throws.
  /// @throws StateError where a loss is on and no backward came through an identity (that it returned a tensor with gradient)
  void finish(BalanceState& state);

  /// The coefficients of a forward and layer, [S, E] double, as backward will add them; for tests and the conformance suite.
  [[nodiscard]] at::Tensor coefficients_SE(int64_t forward, int64_t layer) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
