#pragma once
// Balancing of one optimizer step: counts in, coefficients out. G segments of a forward, E experts, T tokens.
//
// The life of a step, as the trainer and the tests write it:
//
//   StepBalance balance(config, shape, plan, state);
//   for each forward f:            // and again under recomputation, or first as a pre-pass
//     for each layer l:            // inside the router and the MoE layer
//       logits = balance.through_logits(f, l, logits, segment_T);
//       probs  = balance.through_probs(f, l, probs, segment_T);   // identity; its backward adds coefficients c[l, g(t), e]
//       balance.record(f, l, routing, segment_T);                 // idempotent by (step, f, l)
//     balance.close_forward(f);    // coefficients that are known now are filled in
//   balance.close_counting();      // after the last forward: the rest
//   ... backward of each forward, in any order after its coefficients are filled ...
//   balance.finish(state);         // the step's counts become the previous step
//
// A backward that reaches an unfilled coefficient is a StateError, never a silent zero.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/step_plan.hpp"
#include "switchyard/core/expert_counts.hpp"
#include "switchyard/core/routing.hpp"
#include "switchyard/core/scope.hpp"

namespace switchyard {

struct BalanceShape {
  int64_t num_layers = 0;   // MoE layers only
  int64_t num_experts = 0;  // E
  int64_t num_chosen = 0;   // K, the mean where it varies
};

/// What lasts from step to step; saved in checkpoints bit for bit.
struct BalanceState {
  at::Tensor previous_counts_LE{};  // int64; undefined before the first step
  at::Tensor ema_fractions_LE{};    // double; undefined before the first step
};

/// Values of a finished step, for the log. Raw: 1 is uniform, lambda not applied. Scope: that of the config.
struct BalanceValues {
  std::vector<double> lbl_L;     // per MoE layer; NaN-free; empty if the method is none or no statistics exist yet
  std::vector<double> z_loss_L;  // mean over valid tokens of logsumexp^2; empty if z_coefficient is 0
  double weighted_loss = 0.0;    // what was added to the training loss
};

class StepBalance {
 public:
  /// Keeps what it needs of `state`.
  /// @throws ConfigError, UsageError or ShapeError for a config, plan or state that cannot be
  StepBalance(const BalanceConfig& config, const BalanceShape& shape, StepPlan plan, const BalanceState& state);
  ~StepBalance();
  StepBalance(StepBalance&&) noexcept;

  /// Identities; their backward adds the loss's gradient. Without balancing they return their argument unchanged.
  [[nodiscard]] at::Tensor through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                          const at::Tensor& segment_T);
  [[nodiscard]] at::Tensor through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE,
                                         const at::Tensor& segment_T);

  /// True where the scope takes f from earlier steps and there are none yet: this step has no balancing loss (tell the user).
  [[nodiscard]] bool lacks_history() const;

  /// Takes the counts of a forward. A repeat with equal counts changes nothing; with other counts it is a StateError.
  void record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T);
  void close_forward(int64_t forward);
  void close_counting();

  /// Valid after close_counting(): int64 [L, E] over the whole step, and per micro-batch [M, L, E].
  [[nodiscard]] at::Tensor step_counts_LE() const;
  [[nodiscard]] at::Tensor micro_batch_counts_MLE() const;
  [[nodiscard]] BalanceValues values() const;
  void finish(BalanceState& state) const;

  /// The coefficients of a forward, [G, E] double, as backward will add them; for tests and the conformance suite.
  [[nodiscard]] at::Tensor coefficients_GE(int64_t forward, int64_t layer) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct BalancerEntry {
  std::string_view name;
  std::string_view description;
  std::string_view source;
};
[[nodiscard]] const std::vector<BalancerEntry>& balancer_table();

}  // namespace switchyard
