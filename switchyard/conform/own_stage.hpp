#pragma once
// One pipeline stage of a step, played through StepBalance in one process: some layers, the tokens of all ranks.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

/// What one forward of the plan runs.
struct Forward {
  std::vector<int64_t> tokens{};  // of the case
  at::Tensor segment_T{};         // as StepBalance wants it
  double caller_weight = 1.0;
};

/// How a case becomes a StepPlan. Ranks are played through in one process: where the scope or a sequence joins the ranks of a
/// micro-batch, they are one forward with the tokens of all; elsewhere each rank's share is a forward of its own, and its own
/// micro-batch in the numbering of the plan. Ranks with a communicator each (run_ranks) can replace this.
struct Partition {
  StepPlan plan{};
  std::vector<Forward> forwards{};
  int64_t parts = 1;  // micro-batches of the plan for each of the case
};
[[nodiscard]] Partition partition_of(const BalanceCase& step);

class Stage {
 public:
  /// @param layers  those of the stage, in order
  /// @param state   of these layers
  Stage(const BalanceCase& step, std::vector<int64_t> layers, const BalanceState& state);

  /// Forwards in order, backwards from the last; gradients and the task's loss go into the outcome.
  void run(Outcome& outcome);

  [[nodiscard]] const StepBalance& balance() const { return balance_; }
  [[nodiscard]] int64_t parts() const { return partition_.parts; }

 private:
  struct Passed {
    at::Tensor logits_TE;  // the leaf
    at::Tensor probs_TE;   // behind the identities
    at::Tensor task_TE;
  };

  [[nodiscard]] at::Tensor rows_of(const std::vector<double>& values_LTE, size_t forward, size_t slot) const;
  [[nodiscard]] Routing routing_of(const Passed& passed, size_t forward, size_t slot) const;
  [[nodiscard]] Passed pass(StepBalance& balance, size_t forward, size_t slot) const;
  void run_forward(size_t forward);
  void evaluate(size_t forward) const;
  void backward(size_t forward, size_t slot, Outcome& outcome);

  const BalanceCase& step_;
  std::vector<int64_t> layers_;
  Partition partition_;
  BalanceConfig config_;
  BalanceState state_;
  BalanceShape shape_;
  StepBalance balance_;
  std::vector<Passed> passed_;  // [F * L], of layers that run once
};

}  // namespace switchyard::conform
