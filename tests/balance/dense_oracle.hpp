#pragma once
// The balancing loss written down directly: one plain autograd expression over all tokens of a step, with groups given as lists
// of segments and expert counts held constant. Shares no code with switchyard/balance.

#include <vector>

#include "toy_step.hpp"

namespace switchyard::toy {

struct OracleResult {
  Gradients gradients;
  std::vector<double> lbl_L;
  std::vector<double> z_loss_L;
  double weighted_loss = 0.0;
};

/// @param history  counts or fractions of earlier steps; undefined tensors for the first step
[[nodiscard]] OracleResult dense_oracle(const ToyModel& model, const Layout& layout, const BalanceConfig& config,
                                        const BalanceState& history = {});

}  // namespace switchyard::toy
