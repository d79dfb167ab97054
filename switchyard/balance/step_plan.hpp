#pragma once
// What is known about an optimizer step before its first forward. A segment is a sequence or a packed document; segments are
// numbered in step order (micro-batch, rank, row, document). S segments, F forwards, M micro-batches, R ranks.

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

/// Segments [begin, end) of the step.
struct SegmentRange {
  int64_t begin = 0;
  int64_t end = 0;
  [[nodiscard]] int64_t size() const { return end - begin; }
  [[nodiscard]] bool empty() const { return begin == end; }
  bool operator==(const SegmentRange&) const = default;
};

enum class Averaging { Sum, Mean, ByTokens };  // who the caller lets divide, see GradientContract

/// What the caller does with the gradients of the micro-batches and ranks after their backward. Declared, never guessed.
/// Sum: adds them up. Mean: divides the sum by their number. ByTokens: weights each by its valid tokens; a micro-batch over
/// those of its rank in the step, a rank over those of all ranks.
struct GradientContract {
  Averaging micro_batches = Averaging::Sum;
  Averaging ranks = Averaging::Sum;
};

/// Everything about a step that is known before its first forward. Forwards hold whole micro-batches.
struct StepPlan {
  int64_t step = 0;
  std::vector<int64_t> segment_tokens{};       // valid tokens, in step order over all forwards
  std::vector<int64_t> segment_micro_batch{};  // non-decreasing; on ranks each counts from 0
  std::vector<int64_t> forward_begin{};        // F + 1 offsets into the segments
  std::vector<int64_t> segment_rank{};         // data rank that holds each, never falls in a micro-batch; empty: all of rank 0
  std::vector<int64_t> segment_domain{};       // label of each, -1 for none; empty: none. Expert divergence reads it
  GradientContract contract{};
  /// M as the caller counts it when it averages, micro-batches without a valid token included. 0: one more than the last
  /// entry of segment_micro_batch, which misses only empty micro-batches at the end.
  int64_t num_micro_batches = 0;

  [[nodiscard]] int64_t num_forwards() const { return static_cast<int64_t>(forward_begin.size()) - 1; }
  [[nodiscard]] int64_t num_segments() const { return static_cast<int64_t>(segment_tokens.size()); }
  [[nodiscard]] int64_t micro_batch_count() const;  // M
  [[nodiscard]] int64_t step_tokens() const;        // T_step, valid tokens of the step
  [[nodiscard]] SegmentRange segments(int64_t forward) const;
  [[nodiscard]] std::string place(int64_t forward, int64_t layer) const;  // "step 3, forward 0, layer 1", for messages
  [[nodiscard]] int64_t rank_of(int64_t segment) const;
  [[nodiscard]] int64_t domain_of(int64_t segment) const;
};

/// Throws UsageError where the parts of a plan contradict each other: lengths, order, a micro-batch split over two forwards,
/// or ByTokens with several micro-batches in one forward (their gradients arrive added up, so nobody can weigh them).
void check_plan(const StepPlan& plan);

/// What contract_factors() must know of the other ranks.
struct WholeStep {
  int64_t tokens = 0;     // valid tokens of the step, over all ranks
  int64_t num_ranks = 1;  // R, by which a caller divides under `ranks = Mean`
};

/// s of each segment of this rank's plan: the factor by which an injected gradient must be enlarged so that what the caller
/// does afterwards leaves the gradient of the loss. For micro-batches 1 (Sum), M (Mean) or T_r / T_rm (ByTokens; 1 in those
/// without tokens), times 1 (Sum), R (Mean) or T_step / T_r (ByTokens) for ranks.
[[nodiscard]] std::vector<double> contract_factors(const StepPlan& plan, const WholeStep& whole);

}  // namespace switchyard
