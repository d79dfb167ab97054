#pragma once
// Loops over one row, in SIMD (Highway) with the instruction set chosen at run time. No tensors here: the kernels call these
// for each row and check shapes before. Arithmetic is fp32 for bf16 and fp32 rows, double for double ones; each result is
// rounded once. Rows may have any length, 1 included.

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

namespace switchyard {

template <typename Value>
using WideOf = std::conditional_t<std::is_same_v<Value, double>, double, float>;

template <typename Value>
struct RowOps {
  using Wide = WideOf<Value>;

  /// out = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const Value* x, const Wide* weight, Value* out, int64_t width, Wide epsilon);
  /// d_x is written, d_weight is added to. d_kept: what else flows to x, added to d_x; or null.
  void (*rms_norm_backward)(const Value* x, const Wide* weight, const Value* d_out, const Value* d_kept, Value* d_x,
                            Wide* d_weight, int64_t width, Wide epsilon);

  /// rms_norm, then rotation of the pairs (i, i + width / 2) by (cos, sin)[i], then scale.
  void (*norm_rotate)(const Value* x, const Wide* weight, const Wide* cos, const Wide* sin, Wide scale, Value* out,
                      int64_t width, Wide epsilon);
  /// As rms_norm_backward; scratch holds width numbers.
  void (*norm_rotate_backward)(const Value* x, const Wide* weight, const Wide* cos, const Wide* sin, Wide scale,
                               const Value* d_out, Value* d_x, Wide* d_weight, Wide* scratch, int64_t width, Wide epsilon);

  /// out = silu(gate) * up; gate_up holds gate, then up, width numbers each.
  void (*swiglu)(const Value* gate_up, Value* out, int64_t width);
  /// h = silu(gate) * up: writes weight * h and, for d_hidden = d loss / d (weight * h), the gradient of gate_up; returns
  /// sum(h * d_hidden).
  Wide (*swiglu_backward)(const Value* gate_up, const Value* d_hidden, Wide weight, Value* d_gate_up, Value* weighted,
                          int64_t width);

  /// In place: softmax of the first `visible` numbers (at least 1), zeros from there to `width`.
  /// scratch holds `visible` numbers.
  void (*softmax)(Value* row, Wide* scratch, int64_t visible, int64_t width);
  /// In place on d_probs: gradient of the scores. Zeros from `visible` to `width`.
  void (*softmax_backward)(const Value* probs, Value* d_probs, int64_t visible, int64_t width);

  /// logsumexp(logits) - logits[target], good to 1e-4 of itself also where it is near 0. The logits are as before afterwards.
  Wide (*cross_entropy)(Value* logits, int64_t width, int64_t target);
  /// The same number; logits become softmax(logits) - one_hot(target). scratch holds `width` numbers.
  Wide (*cross_entropy_gradient)(Value* logits, Wide* scratch, int64_t width, int64_t target);

  /// out = a + b, rounded
  void (*add)(const Value* a, const Value* b, Value* out, int64_t width);
  /// sum += weight * row
  void (*add_scaled)(Wide* sum, const Value* row, Wide weight, int64_t width);
  /// sum = ((rows[0] + rows[1]) + ...), each row from its number `begin` on; at least one row
  void (*sum_rows)(const Value* const* rows, int64_t num_rows, int64_t begin, Wide* sum, int64_t width);
  /// out = sum, rounded
  void (*store)(const Wide* sum, Value* out, int64_t width);
  /// out = ((weights[0] rows[0] + weights[1] rows[1]) + ...), rounded; zeros for no rows
  void (*weighted_sum)(const Value* const* rows, const Wide* weights, int64_t num_rows, Value* out, int64_t width);

  Wide (*sum_of_squares)(const Value* row, int64_t width);
};

/// Value: c10::BFloat16, float or double.
template <typename Value>
[[nodiscard]] const RowOps<Value>& row_ops();
template <>
const RowOps<c10::BFloat16>& row_ops();
template <>
const RowOps<float>& row_ops();
template <>
const RowOps<double>& row_ops();

}  // namespace switchyard
