#pragma once
// One optimizer step, whole: everything that N ranks and M micro-batches see, described so that one process can play it
// through. T tokens of the step (padding included), L layers, E experts, K chosen. No tensors: an implementation under test may
// use any.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/step_plan.hpp"
#include "switchyard/conform/layout.hpp"
#include "switchyard/core/scope.hpp"

namespace switchyard::conform {

inline constexpr int64_t kPadding = -1;  // the segment of a padding token

/// Where a token lies.
struct CaseToken {
  int64_t segment = 0;      // label of its sequence or packed document; kPadding for padding
  int64_t row = 0;          // label of the row of the forward that holds it; packed documents share one
  int64_t micro_batch = 0;  // in [0, num_micro_batches)
  int64_t rank = 0;         // in [0, num_ranks): which share of the tokens

  [[nodiscard]] bool valid() const { return segment != kPadding; }
  [[nodiscard]] int64_t domain() const { return segment % 2; }  // of its segment, for methods that read labels
  bool operator==(const CaseToken&) const = default;
};

/// What is asked for: a method and the tokens that it counts over.
struct Subject {
  /// A balancing loss; "mixed_lbl": that of optimizer_batch plus 1 % of that of micro_batch; or, all without a scope: a loss of
  /// each token by itself ("z_loss"; "token_loss", the way of the orthogonality loss, here with sum_e p_e^2: what a token's loss
  /// is does not matter, only what becomes of it), a rule that corrects choices without a loss ("bias", ...), "none": the task's loss alone.
  std::string method = "lbl";
  Scope scope{};

  bool operator==(const Subject&) const = default;
};

/// "lbl/optimizer_batch", "z_loss".
[[nodiscard]] std::string to_string(const Subject& subject);
[[nodiscard]] bool is_token_loss(const Subject& subject);
/// Whether its method has a scope: all losses of statistics.
[[nodiscard]] bool has_scope(const Subject& subject);
/// Whether it adds a loss; a selection rule does not.
[[nodiscard]] bool has_loss(const Subject& subject);

enum class Evaluation { None, AfterEachMicroBatch };  // forwards on other tokens, without training, in between
enum class Interruption { None, AfterEachMicroBatch };  // the step's progress is saved, and a new process goes on from it
/// Whether the router hands its scores to the loss, and goes on with what it got back.
enum class Wiring { Whole, RouterPassesNothing, RouterDropsResult };

/// Tokens come in step order: (micro-batch, rank, row, document). Segments are ordered by the first of their tokens.
struct BalanceCase {
  int64_t num_layers = 2;
  int64_t num_experts = 4;
  int64_t num_chosen = 2;
  int64_t num_micro_batches = 1;  // as the caller counts them, those without tokens too
  int64_t num_ranks = 1;          // the same
  std::vector<CaseToken> tokens{};
  std::vector<double> logits_LTE{};
  std::vector<int64_t> choices_LTK{};  // experts the router took; empty: those of the K largest logits
  std::vector<bool> dropped_LTK{};     // requested, but over the capacity; empty: none (only with choices_LTK)
  std::vector<double> task_LTE{};      // weights of a task loss sum(task * probs); empty: no such loss
  std::vector<int64_t> runs_L{};       // how often each layer runs in each forward; empty: once

  Subject subject{};
  double coefficient = 0.5;  // lambda
  GroupWeighting weighting = GroupWeighting::Tokens;
  LayerReduction layers = LayerReduction::Mean;
  GradientContract contract{};
  DeviceGrid grid{};  // if it has one device: num_ranks devices, a share of the tokens each
  Evaluation evaluation = Evaluation::None;
  Interruption interruption = Interruption::None;
  Wiring wiring = Wiring::Whole;

  [[nodiscard]] int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  [[nodiscard]] int64_t num_valid() const;
  [[nodiscard]] size_t row(int64_t layer, int64_t token) const {  // of [L, T, .]
    return static_cast<size_t>(layer * num_tokens() + token);
  }
  [[nodiscard]] const CaseToken& token(int64_t index) const { return tokens[static_cast<size_t>(index)]; }
  [[nodiscard]] int64_t runs(int64_t layer) const { return runs_L.empty() ? 1 : runs_L[static_cast<size_t>(layer)]; }
  [[nodiscard]] DeviceGrid devices() const;
};

/// The experts a token was sent to: choices_LTK, or the K largest logits (the lower expert wins a tie).
[[nodiscard]] std::vector<int64_t> chosen_K(const BalanceCase& step, int64_t layer, int64_t token);

/// Valid tokens of a rank's share of a micro-batch.
[[nodiscard]] int64_t valid_tokens(const BalanceCase& step, int64_t micro_batch, int64_t rank);

/// What the caller multiplies a token's gradient with after its backward, by the contract: 1 for Sum, 1 / M (or N) for Mean,
/// its share of the step's valid tokens for ByTokens, which must be declared for micro-batches and ranks alike.
[[nodiscard]] double caller_weight(const BalanceCase& step, int64_t micro_batch, int64_t rank);

/// Throws UsageError where the parts contradict each other.
void check_case(const BalanceCase& step);

}  // namespace switchyard::conform
