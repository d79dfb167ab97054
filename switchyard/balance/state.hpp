#pragma once
// What balancing keeps from step to step. L MoE layers, E experts.

#include <ATen/core/Tensor.h>

#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/core/scope.hpp"

namespace switchyard {

/// Saved in checkpoints bit for bit. The same on every rank.
struct BalanceState {
  at::Tensor previous_counts_LE{};    // int64; undefined before the first step
  at::Tensor ema_fractions_LE{};      // double; undefined before the first step
  at::Tensor selection_offsets_LE{};  // float, added to scores for choosing; undefined where no rule is asked for
};

/// Which tensors of the state these settings read, in any step; undefined ones are among them.
struct NamedState {
  const char* name = "";
  at::Tensor kept_LE{};
  at::ScalarType type = at::kLong;
  const char* type_name = "int64";
};
[[nodiscard]] std::vector<NamedState> state_read_by(const BalanceConfig& config, const BalanceState& state);

/// @throws ShapeError when a tensor that the settings read has another shape or type
void check_state(const BalanceConfig& config, const BalanceShape& shape, const BalanceState& state);

/// f of each layer as earlier steps left it, for scopes that take it from there; empty where they left nothing.
/// @param state  one that check_state() let pass
[[nodiscard]] std::vector<std::vector<double>> earlier_fractions(const Scope& scope, const BalanceState& state,
                                                                 const BalanceShape& shape);

/// Takes the counts of a finished step: they become those of the previous step, and enter the exponential mean of `ema`.
/// @param counts_LE  int64, of all ranks
/// @param ema_decay  0 where no scope asks for it
void keep_counts(const at::Tensor& counts_LE, double ema_decay, BalanceState& state);

}  // namespace switchyard
