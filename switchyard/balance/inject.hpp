#pragma once
// Identities through which a balancing loss enters backward. They hold a cell, not a number: what the cell says is read when
// backward runs, so it may be filled after the forward. T tokens, E experts, S segments of the forward.

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace switchyard {

/// Coefficients of one forward and layer, shared by the step and the graph.
class CoefficientCell : public torch::CustomClassHolder {
 public:
  /// @param where  names step, forward and layer, for messages
  explicit CoefficientCell(std::string where) : where_(std::move(where)) {}

  /// @param coefficients_SE  double [S, E] (or [S, 1] for the z-loss)
  void fill(const at::Tensor& coefficients_SE);
  [[nodiscard]] bool filled() const { return rows_.defined(); }

  /// [S, E] double. Throws StateError, naming the place, if it is not filled yet.
  [[nodiscard]] at::Tensor coefficients_SE() const;
  /// The coefficients of each token in the type asked for, [T, E]; zero where segment_T is -1 (padding).
  [[nodiscard]] at::Tensor of_tokens(const at::Tensor& segment_T, at::ScalarType type) const;

  /// Says that backward is to come through here. @return `through`, what an identity of this cell gave
  at::Tensor expect_backward(const at::Tensor& through);
  /// An identity gave a tensor with gradient, and no backward came through it: nothing that followed depended on it.
  [[nodiscard]] bool bypassed() const { return expected_ && !reached_; }
  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  std::string where_;
  at::Tensor rows_;  // [S + 1, E], the last row zero
  bool expected_ = false;
  mutable std::atomic<bool> reached_ = false;  // by a thread of autograd's
};

using CellPtr = c10::intrusive_ptr<CoefficientCell>;

/// Returns probs_TE; backward adds c[segment, e] to its gradient.
/// @param segment_T  int64 in [-1, S), -1 for padding
[[nodiscard]] at::Tensor inject_coefficients(const at::Tensor& probs_TE, const at::Tensor& segment_T, const CellPtr& cell);

/// Returns probs_TE; backward adds q[segment] * probs_TE, the part of a gradient that is linear in a token's own probabilities.
/// @param cell  double [S, 1]
[[nodiscard]] at::Tensor inject_curvature(const at::Tensor& probs_TE, const at::Tensor& segment_T, const CellPtr& cell);

/// Returns logits_TE; backward adds the gradient of sum_te c[segment, e] * smooth_load(logits)_te.
[[nodiscard]] at::Tensor inject_load(const at::Tensor& logits_TE, const at::Tensor& segment_T, const CellPtr& cell,
                                     int64_t num_chosen);

/// Returns through_TX; backward hands c[segment] to the gradient of loss_T, as if sum_t c loss_t had been added to the loss.
[[nodiscard]] at::Tensor inject_token_loss(const at::Tensor& through_TX, const at::Tensor& loss_T,
                                           const at::Tensor& segment_T, const CellPtr& cell);

/// Returns logits_TE; backward adds c[segment] * d lse^2 / d logits = c * 2 * lse * softmax(logits), the z-loss of arXiv
/// 2202.08906, eq. 5.
[[nodiscard]] at::Tensor inject_z_loss(const at::Tensor& logits_TE, const at::Tensor& segment_T, const CellPtr& cell);

}  // namespace switchyard
