#include "switchyard/kernels/row_ops.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

// This file is compiled once for each instruction set; Highway includes it again from foreach_target.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "switchyard/kernels/row_ops.cpp"
#include <hwy/foreach_target.h>

#include "switchyard/kernels/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

template <typename Value>
WideOf<Value> inverse_norm(const Value* x, int64_t width, WideOf<Value> epsilon) {
  const Tag<Value> d;
  auto squares = hn::Zero(d);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto value = load(x + i, part);
    squares = hn::MulAdd(value, value, squares);
  });
  return 1 / std::sqrt(total(d, squares) / static_cast<WideOf<Value>>(width) + epsilon);
}

template <typename Value>
void rms_norm(const Value* x, const WideOf<Value>* weight, Value* out, int64_t width, WideOf<Value> epsilon) {
  const auto inverse = hn::Set(Tag<Value>(), inverse_norm(x, width, epsilon));
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::Mul(hn::Mul(load(x + i, part), inverse), load(weight + i, part)), out + i, part);
  });
}

// With n = x * inverse: d_x = inverse * (g - n * mean(g * n)), g = weight * d_out, and d_weight = d_out * n.
template <typename Value, typename Gradient>
HWY_INLINE void norm_gradient(const Value* x, const WideOf<Value>* weight, const Gradient* d_out, const Value* d_kept, Value* d_x,
                              WideOf<Value>* d_weight, int64_t width, WideOf<Value> epsilon) {
  using Wide = WideOf<Value>;
  const Tag<Value> d;
  const Wide inverse = inverse_norm(x, width, epsilon);
  const auto inverse_v = hn::Set(d, inverse);
  auto product = hn::Zero(d);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto gradient = load(d_out + i, part);
    const auto normed = hn::Mul(load(x + i, part), inverse_v);
    const auto d_normed = hn::Mul(gradient, normed);
    store(hn::Add(load(d_weight + i, part), d_normed), d_weight + i, part);
    product = hn::MulAdd(d_normed, load(weight + i, part), product);
  });
  const auto mean = hn::Set(d, total(d, product) / static_cast<Wide>(width));
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto normed = hn::Mul(load(x + i, part), inverse_v);
    const auto gradient = hn::Mul(load(d_out + i, part), load(weight + i, part));
    const auto through_norm = hn::Mul(inverse_v, hn::NegMulAdd(normed, mean, gradient));
    store(d_kept == nullptr ? through_norm : hn::Add(through_norm, load(d_kept + i, part)), d_x + i, part);
  });
}

template <typename Value>
void rms_norm_backward(const Value* x, const WideOf<Value>* weight, const Value* d_out, const Value* d_kept, Value* d_x,
                       WideOf<Value>* d_weight, int64_t width, WideOf<Value> epsilon) {
  norm_gradient(x, weight, d_out, d_kept, d_x, d_weight, width, epsilon);
}

template <typename Value>
void norm_rotate(const Value* x, const WideOf<Value>* weight, const WideOf<Value>* cos, const WideOf<Value>* sin,
                 WideOf<Value> scale, Value* out, int64_t width, WideOf<Value> epsilon) {
  const int64_t half = width / 2;
  const auto factor = hn::Set(Tag<Value>(), inverse_norm(x, width, epsilon) * scale);
  for_each_vector<Value>(half, [&](int64_t i, auto part) HWY_ATTR {
    const auto first = hn::Mul(hn::Mul(load(x + i, part), factor), load(weight + i, part));
    const auto second = hn::Mul(hn::Mul(load(x + half + i, part), factor), load(weight + half + i, part));
    const auto c = load(cos + i, part);
    const auto s = load(sin + i, part);
    store(hn::NegMulAdd(second, s, hn::Mul(first, c)), out + i, part);
    store(hn::MulAdd(first, s, hn::Mul(second, c)), out + half + i, part);
  });
}

template <typename Value>
void norm_rotate_backward(const Value* x, const WideOf<Value>* weight, const WideOf<Value>* cos, const WideOf<Value>* sin,
                          WideOf<Value> scale, const Value* d_out, Value* d_x, WideOf<Value>* d_weight,
                          WideOf<Value>* scratch, int64_t width, WideOf<Value> epsilon) {
  const int64_t half = width / 2;
  const auto factor = hn::Set(Tag<Value>(), scale);
  for_each_vector<Value>(half, [&](int64_t i, auto part) HWY_ATTR {
    const auto first = hn::Mul(load(d_out + i, part), factor);
    const auto second = hn::Mul(load(d_out + half + i, part), factor);
    const auto c = load(cos + i, part);
    const auto s = load(sin + i, part);
    store(hn::MulAdd(first, c, hn::Mul(second, s)), scratch + i, part);
    store(hn::NegMulAdd(first, s, hn::Mul(second, c)), scratch + half + i, part);
  });
  norm_gradient(x, weight, static_cast<const WideOf<Value>*>(scratch), static_cast<const Value*>(nullptr), d_x, d_weight, width, epsilon);
}

template <typename Value>
void swiglu(const Value* gate_up, Value* out, int64_t width) {
  const Tag<Value> d;
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto gate = load(gate_up + i, part);
    store(hn::Mul(hn::Mul(gate, sigmoid(d, gate)), load(gate_up + width + i, part)), out + i, part);
  });
}

template <typename Value>
WideOf<Value> swiglu_backward(const Value* gate_up, const Value* d_hidden, WideOf<Value> weight, Value* d_gate_up,
                              Value* weighted, int64_t width) {
  const Tag<Value> d;
  const auto weight_v = hn::Set(d, weight);
  auto product = hn::Zero(d);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto gate = load(gate_up + i, part);
    const auto up = load(gate_up + width + i, part);
    const auto gradient = load(d_hidden + i, part);
    const auto gate_sigmoid = sigmoid(d, gate);
    const auto silu = hn::Mul(gate, gate_sigmoid);
    const auto hidden = hn::Mul(silu, up);
    product = hn::MulAdd(hidden, gradient, product);
    store(hn::Mul(hidden, weight_v), weighted + i, part);
    const auto d_plain = hn::Mul(gradient, weight_v);
    // d silu / d x = sigmoid + silu * (1 - sigmoid)
    const auto d_silu = hn::Add(gate_sigmoid, hn::NegMulAdd(silu, gate_sigmoid, silu));
    store(hn::Mul(hn::Mul(d_plain, up), d_silu), d_gate_up + i, part);
    store(hn::Mul(d_plain, silu), d_gate_up + width + i, part);
  });
  return total(d, product);
}

template <typename Value>
WideOf<Value> largest(const Value* row, int64_t width) {
  const Tag<Value> d;
  const auto lowest = hn::Set(d, -std::numeric_limits<WideOf<Value>>::infinity());
  auto most = lowest;
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    most = hn::Max(most, only(d, load(row + i, part), lowest, part));
  });
  return hn::GetLane(hn::MaxOfLanes(d, most));
}

// The sum of what term(i, part) gives for the vectors of a row. In pieces: beside what a lane has added up over a whole vocabulary
// each further small number would be lost.
template <typename Value, typename Term>
HWY_INLINE WideOf<Value> sum_in_pieces(int64_t width, const Term& term) {
  constexpr int64_t kPiece = 2048;
  const Tag<Value> d;
  auto sum = hn::Zero(d);
  for (int64_t begin = 0; begin < width; begin += kPiece) {
    auto piece = hn::Zero(d);
    for_each_vector<Value>(std::min(kPiece, width - begin), [&](int64_t i, auto part) HWY_ATTR {
      piece = hn::Add(piece, term(begin + i, part));
    });
    sum = hn::Add(sum, piece);
  }
  return total(d, sum);
}

template <typename Value>
WideOf<Value> sum_of_exp(const Value* row, int64_t width, WideOf<Value> most) {
  const Tag<Value> d;
  const auto most_v = hn::Set(d, most);
  return sum_in_pieces<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    return only(d, exp_below_zero(d, hn::Sub(load(row + i, part), most_v)), hn::Zero(d), part);
  });
}

// exps = exp(row - most), unrounded; returns their sum.
template <typename Value>
WideOf<Value> keep_exp(const Value* row, WideOf<Value>* exps, int64_t width, WideOf<Value> most) {
  const Tag<Value> d;
  const auto most_v = hn::Set(d, most);
  return sum_in_pieces<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto value = exp_below_zero(d, hn::Sub(load(row + i, part), most_v));
    store(value, exps + i, part);
    return only(d, value, hn::Zero(d), part);
  });
}

template <typename Value>
void scale(const WideOf<Value>* from, Value* to, int64_t width, WideOf<Value> factor) {
  const auto factor_v = hn::Set(Tag<Value>(), factor);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::Mul(load(from + i, part), factor_v), to + i, part);
  });
}

// NaN and infinite scores give NaN, never a plausible number.
template <typename Value>
void softmax(Value* row, WideOf<Value>* scratch, int64_t visible, int64_t width) {
  const WideOf<Value> sum = keep_exp(row, scratch, visible, largest(row, visible));
  scale(scratch, row, visible, 1 / sum);
  std::fill(row + visible, row + width, Value(0));
}

template <typename Value>
void softmax_backward(const Value* probs, Value* d_probs, int64_t visible, int64_t width) {
  const Tag<Value> d;
  auto product = hn::Zero(d);
  for_each_vector<Value>(visible, [&](int64_t i, auto part) HWY_ATTR {
    product = hn::MulAdd(load(probs + i, part), load(d_probs + i, part), product);
  });
  const auto mean = hn::Set(d, total(d, product));
  for_each_vector<Value>(visible, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::Mul(load(probs + i, part), hn::Sub(load(d_probs + i, part), mean)), d_probs + i, part);
  });
  std::fill(d_probs + visible, d_probs + width, Value(0));
}

// The others' share of a row's sum is what the loss of a sure token is made of. It is added up by itself: beside the target's own 1
// the numbers of a whole vocabulary can each be too small to count.
template <typename Wide>
struct TargetAndOthers {
  Wide target;  // its logit - the largest of the row
  Wide others;  // sum of exp(logit - the largest)

  [[nodiscard]] Wide sum() const { return others + std::exp(target); }
  [[nodiscard]] Wide loss() const { return target == 0 ? std::log1p(others) : std::log(sum()) - target; }
};

// others: sum_of(most) with the target's logit made -infinity, whose exp is 0; the row is as before afterwards.
template <typename Value, typename SumOf>
HWY_INLINE TargetAndOthers<WideOf<Value>> target_and_others(Value* logits, int64_t width, int64_t target, const SumOf& sum_of) {
  using Wide = WideOf<Value>;
  const Wide most = largest(logits, width);
  const Value own = logits[target];
  logits[target] = static_cast<Value>(-std::numeric_limits<Wide>::infinity());
  const Wide others = sum_of(most);
  logits[target] = own;
  return {static_cast<Wide>(own) - most, others};
}

template <typename Value>
WideOf<Value> cross_entropy(Value* logits, int64_t width, int64_t target) {
  return target_and_others(logits, width, target, [&](auto most) { return sum_of_exp(logits, width, most); }).loss();
}

template <typename Value>
WideOf<Value> cross_entropy_gradient(Value* logits, WideOf<Value>* scratch, int64_t width, int64_t target) {
  const auto row = target_and_others(logits, width, target, [&](auto most) { return keep_exp(logits, scratch, width, most); });
  const WideOf<Value> sum = row.sum();
  scale(scratch, logits, width, 1 / sum);
  logits[target] = static_cast<Value>(-row.others / sum);  // its probability - 1
  return row.loss();
}

template <typename Value>
void add(const Value* a, const Value* b, Value* out, int64_t width) {
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::Add(load(a + i, part), load(b + i, part)), out + i, part);
  });
}

template <typename Value>
void add_scaled(WideOf<Value>* sum, const Value* row, WideOf<Value> weight, int64_t width) {
  const auto weight_v = hn::Set(Tag<Value>(), weight);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::MulAdd(load(row + i, part), weight_v, load(sum + i, part)), sum + i, part);
  });
}

template <typename Value>
void sum_rows(const Value* const* rows, int64_t num_rows, int64_t begin, WideOf<Value>* sum, int64_t width) {
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    auto numbers = load(rows[0] + begin + i, part);
    for (int64_t row = 1; row < num_rows; ++row) numbers = hn::Add(numbers, load(rows[row] + begin + i, part));
    store(numbers, sum + i, part);
  });
}

template <typename Value>
void store_row(const WideOf<Value>* sum, Value* out, int64_t width) {
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR { store(load(sum + i, part), out + i, part); });
}

template <typename Value>
void weighted_sum(const Value* const* rows, const WideOf<Value>* weights, int64_t num_rows, Value* out, int64_t width) {
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    auto sum = hn::Zero(Tag<Value>());
    for (int64_t row = 0; row < num_rows; ++row) {
      sum = hn::MulAdd(load(rows[row] + i, part), hn::Set(Tag<Value>(), weights[row]), sum);
    }
    store(sum, out + i, part);
  });
}

template <typename Value>
WideOf<Value> sum_of_squares(const Value* row, int64_t width) {
  auto sum = hn::Zero(Tag<Value>());
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    const auto value = load(row + i, part);
    sum = hn::MulAdd(value, value, sum);
  });
  return total(Tag<Value>(), sum);
}

template <typename Value>
constexpr RowOps<Value> kRowOps = {
    &rms_norm<Value>, &rms_norm_backward<Value>, &norm_rotate<Value>,   &norm_rotate_backward<Value>,
    &swiglu<Value>,   &swiglu_backward<Value>,   &softmax<Value>,       &softmax_backward<Value>,
    &cross_entropy<Value>, &cross_entropy_gradient<Value>, &add<Value>, &add_scaled<Value>, &sum_rows<Value>,
    &store_row<Value>, &weighted_sum<Value>, &sum_of_squares<Value>};

const RowOps<c10::BFloat16>* bfloat16_ops() { return &kRowOps<c10::BFloat16>; }
const RowOps<float>* float_ops() { return &kRowOps<float>; }
const RowOps<double>* double_ops() { return &kRowOps<double>; }

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace switchyard {
namespace {
HWY_EXPORT(bfloat16_ops);
HWY_EXPORT(float_ops);
HWY_EXPORT(double_ops);
}  // namespace

template <>
const RowOps<c10::BFloat16>& row_ops() {
  return *HWY_DYNAMIC_DISPATCH(bfloat16_ops)();
}
template <>
const RowOps<float>& row_ops() {
  return *HWY_DYNAMIC_DISPATCH(float_ops)();
}
template <>
const RowOps<double>& row_ops() {
  return *HWY_DYNAMIC_DISPATCH(double_ops)();
}

}  // namespace switchyard
#endif
