#pragma once
// One device of a step, run through StepBalance: the layers of its pipeline stage, its share of the tokens, and its
// communicator.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

/// What a device holds.
struct DeviceShare {
  std::vector<int64_t> layers{};  // of its stage, in order
  int64_t rank = 0;               // whose tokens
  RankShare ranks{};              // as StepBalance wants it declared
};

/// The devices of a stage in the order of their communicator. Ranks that hold parts of the same sequences are declared as one
/// data rank, tensor-parallel copies as replicas.
[[nodiscard]] std::vector<DeviceShare> shares_of_stage(const BalanceCase& step, int64_t stage);

class OwnDevice {
 public:
  /// @param state  of the layers of the stage
  /// @param comm   of the stage; nullptr where this is its only device
  OwnDevice(const BalanceCase& step, DeviceShare share, const BalanceState& state, Communicator* comm);

  /// Forwards in order, backwards from the last. The outcome has the gradients of this device's tokens and layers, the task's
  /// loss over them, and the numbers that every device of the stage must agree on.
  void run(Outcome& outcome);
  void finish(BalanceState& state) { balance_.finish(state); }

 private:
  struct Forward {
    std::vector<int64_t> tokens{};  // of the case
    at::Tensor segment_T{};         // as StepBalance wants it
  };
  struct Passed {
    at::Tensor logits_TE;  // the leaf
    at::Tensor probs_TE;   // behind the identities
    at::Tensor task_TE;
  };

  [[nodiscard]] StepPlan make_plan();
  [[nodiscard]] StepBalance make_balance(const BalanceConfig& config, const BalanceState& state) const;
  [[nodiscard]] at::Tensor rows_of(const std::vector<double>& values_LTE, size_t forward, size_t slot) const;
  [[nodiscard]] Routing routing_of(const Passed& passed, size_t forward, size_t slot) const;
  [[nodiscard]] Passed pass(StepBalance& balance, size_t forward, size_t slot) const;
  void run_forward(size_t forward);
  void stop_and_resume();
  void run_with_stops(Outcome& outcome);
  void evaluate(size_t forward) const;
  void backward(size_t forward, size_t slot, Outcome& outcome);
  void take_numbers(Outcome& outcome);

  const BalanceCase& step_;
  DeviceShare share_;
  Communicator* comm_;
  BalanceConfig config_;
  std::vector<Forward> forwards_;
  StepPlan plan_;
  BalanceState state_;
  StepBalance balance_;
  std::vector<Passed> passed_;  // [F * L]
};

}  // namespace switchyard::conform
