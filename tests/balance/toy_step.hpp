#pragma once
// A toy model of one optimizer step, small enough to be written twice: once through StepBalance, as a trainer does, and once
// as a plain autograd expression over the whole step (dense_oracle.hpp). Double precision. Two routed layers, so that gradient
// of the second layer's balancing loss reaches the first. T tokens of the step (padding included), S segments, D, E, L.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/core/scope.hpp"

namespace switchyard::toy {

inline constexpr int64_t kWidth = 5;
inline constexpr int64_t kExperts = 4;
inline constexpr int64_t kChosen = 2;
inline constexpr int64_t kLayers = 2;

/// Where tokens lie. Micro-batches are contiguous; so are segments.
struct Layout {
  std::vector<int64_t> segment_T;      // of the step, -1 for padding
  std::vector<int64_t> micro_batch_T;  // padding too
  std::vector<int64_t> segment_tokens;
  std::vector<int64_t> segment_micro_batch;
  std::vector<int64_t> segment_rank;    // empty: all of rank 0
  std::vector<int64_t> segment_domain;  // empty: none
  int64_t num_micro_batches = 0;

  [[nodiscard]] int64_t num_tokens() const { return static_cast<int64_t>(segment_T.size()); }
  [[nodiscard]] int64_t num_valid() const;
  [[nodiscard]] std::vector<int64_t> micro_batch_tokens() const;  // valid tokens
};

/// segments[m] lists the lengths of micro-batch m's segments in order; a negative number is that many padding tokens.
[[nodiscard]] Layout make_layout(const std::vector<std::vector<int64_t>>& segments);

/// Uneven lengths, packed documents, padding within and between, a segment without tokens, a micro-batch of padding only.
[[nodiscard]] Layout uneven_layout();

enum class Partition { Together, Separate, Pairs };  // micro-batches per forward: all, one, two
enum class Order { Retain, Direct, Prepass };        // all forwards first; backward after each; counting pass first

/// Leaves of the graph.
struct ToyModel {
  at::Tensor hidden_TD;
  std::vector<at::Tensor> router_LED;
  std::vector<at::Tensor> mix_LED;     // what the experts add; not differentiated
  std::vector<at::Tensor> offset_LTE;  // zeros added to the logits: their gradient is that of the logits
};
[[nodiscard]] ToyModel make_model(uint64_t seed, int64_t num_tokens);

/// What a layer shows while it runs; each may change the tensor it is given.
struct Hooks {
  std::function<at::Tensor(int64_t layer, const at::Tensor& logits_TE)> logits;
  std::function<at::Tensor(int64_t layer, const at::Tensor& probs_TE)> probs;
  std::function<void(int64_t layer, const Routing& routing)> routed;
};

/// Runs tokens [begin, end). Returns the sum over valid tokens of a fixed linear function of the last hidden states.
[[nodiscard]] at::Tensor forward_loss(const ToyModel& model, const Layout& layout, int64_t begin, int64_t end,
                                      const Hooks& hooks);

struct Gradients {
  at::Tensor hidden_TD;
  std::vector<at::Tensor> router_LED;
  std::vector<at::Tensor> logits_LTE;
};
/// Gradients of a loss with respect to all leaves; zeros where it does not depend on one.
[[nodiscard]] Gradients gradients_of(const at::Tensor& loss, const ToyModel& model);

[[nodiscard]] StepPlan plan_of(const Layout& layout, Partition partition, Averaging contract = Averaging::Sum);
[[nodiscard]] BalanceShape toy_shape();

struct StepResult {
  Gradients gradients;  // after what the contract says the caller does
  BalanceValues values;
  at::Tensor counts_LE;
  at::Tensor micro_batch_counts_MLE;
  std::vector<at::Tensor> coefficients;  // [F * L] of [S, E]
  BalanceState state;
};

/// Where one of several ranks stands. Alone: the defaults.
struct RankSide {
  const BalanceRanks* ranks = nullptr;
  int64_t step_tokens = 0;     // valid tokens of all ranks; 0: those of the layout
  double caller_weight = 1.0;  // what the caller multiplies this rank's gradients with
};

/// One step as a caller under the contract of the plan writes it: its own loss is the mean over the step's valid tokens.
[[nodiscard]] StepResult run_step(const ToyModel& model, const Layout& layout, const BalanceConfig& config,
                                  const StepPlan& plan, const BalanceState& state = {}, Order order = Order::Retain,
                                  const RankSide& side = {});

/// Largest absolute difference over all gradients.
[[nodiscard]] double max_difference(const Gradients& a, const Gradients& b);
[[nodiscard]] double max_abs_difference(const at::Tensor& a, const at::Tensor& b);

/// Random counts of an earlier step and their fractions.
[[nodiscard]] BalanceState some_history(uint64_t seed);

/// Every scope, `sequences` once for each of these numbers.
[[nodiscard]] std::vector<Scope> every_scope(const std::vector<int64_t>& numbers_of_sequences);
/// As GoogleTest allows it: what is neither letter nor digit becomes "_".
[[nodiscard]] std::string test_name(std::string text);

}  // namespace switchyard::toy
