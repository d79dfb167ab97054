#include "switchyard/kernels/score_ops.hpp"

#include <cmath>
#include <limits>

// This file is compiled once for each instruction set; Highway includes it again from foreach_target.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "switchyard/kernels/score_ops.cpp"
#include <hwy/foreach_target.h>

#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

using Floats = hn::ScalableTag<float>;

// body(begin, keep): whole vectors up to `visible`; keep(value, other) has value in the lanes before it.
template <typename Body>
HWY_INLINE void for_each_visible(int64_t visible, const Body& body) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= visible; i += lanes) body(i, [](auto value, auto /*other*/) HWY_ATTR { return value; });
  if (i == visible) return;
  const auto mask = hn::FirstN(d, static_cast<size_t>(visible - i));
  body(i, [mask](auto value, auto other) HWY_ATTR { return hn::IfThenElse(mask, value, other); });
}

int64_t whole_vectors(int64_t visible) {
  return rounded_up(visible, static_cast<int64_t>(hn::Lanes(Floats())));
}

template <typename Value>
ExpSum exponentials(const float* scores, Value* exps, int64_t visible, int64_t width) {
  const Floats d;
  const auto lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto most_v = lowest;
  for_each_visible(visible, [&](int64_t i, auto keep) HWY_ATTR { most_v = hn::Max(most_v, keep(hn::LoadU(d, scores + i), lowest)); });
  const float most = hn::GetLane(hn::MaxOfLanes(d, most_v));
  most_v = hn::Set(d, most);
  auto sum_v = hn::Zero(d);
  for_each_visible(visible, [&](int64_t i, auto keep) HWY_ATTR {
    const auto value = keep(exp_below_zero(d, hn::Sub(hn::LoadU(d, scores + i), most_v)), hn::Zero(d));
    sum_v = hn::Add(sum_v, value);
    store(value, exps + i, Whole());
  });
  for (int64_t i = whole_vectors(visible); i < width; ++i) exps[i] = Value(0);
  const float sum = total(d, sum_v);
  return {1.0F / sum, most + std::log(sum)};
}

// scores become probabilities; returns sum(probs * d_probs).
HWY_INLINE float probabilities(const ScoreRow& row, int64_t width) {
  const Floats d;
  const auto log_sum = hn::Set(d, row.log_sum);
  auto product = hn::Zero(d);
  for_each_visible(row.visible, [&](int64_t i, auto keep) HWY_ATTR {
    const auto value = keep(exp_below_zero(d, hn::Sub(hn::LoadU(d, row.scores + i), log_sum)), hn::Zero(d));
    const auto d_value = keep(hn::LoadU(d, row.d_probs + i), hn::Zero(d));
    product = hn::MulAdd(value, d_value, product);
    hn::StoreU(value, d, row.scores + i);
    hn::StoreU(d_value, d, row.d_probs + i);
  });
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = whole_vectors(row.visible); i < width; i += lanes) {
    hn::StoreU(hn::Zero(d), d, row.scores + i);
    hn::StoreU(hn::Zero(d), d, row.d_probs + i);
  }
  return total(d, product);
}

void gradient_bf16(const ScoreRowPair<c10::BFloat16>& rows, int64_t width) {
  const Floats d;
  const hn::ScalableTag<uint32_t> bits;
  const auto upper_mean = hn::Set(d, probabilities(rows.upper, width));
  const auto lower_mean = hn::Set(d, probabilities(rows.lower, width));
  const auto upper_half = hn::Set(bits, 0xFFFF0000U);
  const auto pairs = [&](auto upper, auto lower) HWY_ATTR {
    return hn::Or(hn::ShiftRight<16>(upper), hn::And(lower, upper_half));
  };
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < width; i += lanes) {
    const auto upper = hn::LoadU(d, rows.upper.scores + i);
    const auto lower = hn::LoadU(d, rows.lower.scores + i);
    hn::StoreU(pairs(rounded_bits(upper), rounded_bits(lower)), bits, reinterpret_cast<uint32_t*>(rows.probs_right) + i);
    const auto d_upper = rounded_bits(hn::Mul(upper, hn::Sub(hn::LoadU(d, rows.upper.d_probs + i), upper_mean)));
    const auto d_lower = rounded_bits(hn::Mul(lower, hn::Sub(hn::LoadU(d, rows.lower.d_probs + i), lower_mean)));
    store_rounded(d_upper, rows.upper_d_scores + i);
    store_rounded(d_lower, rows.lower_d_scores + i);
    hn::StoreU(pairs(d_upper, d_lower), bits, reinterpret_cast<uint32_t*>(rows.d_scores_right) + i);
  }
}

void gradient_f32(const ScoreRowPair<float>& rows, int64_t width) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (const ScoreRow& row : {rows.upper, rows.lower}) {
    const auto mean = hn::Set(d, probabilities(row, width));
    for (int64_t i = 0; i < width; i += lanes) {
      const auto difference = hn::Sub(hn::LoadU(d, row.d_probs + i), mean);
      hn::StoreU(hn::Mul(hn::LoadU(d, row.scores + i), difference), d, row.d_probs + i);
    }
  }
}

template <typename Value>
void scale(const float* from, float factor, Value* to, int64_t width) {
  const auto factor_v = hn::Set(Floats(), factor);
  for_each_vector<Value>(width, [&](int64_t i, auto part) HWY_ATTR {
    store(hn::Mul(load(from + i, part), factor_v), to + i, part);
  });
}

constexpr ScoreOps<c10::BFloat16> kBf16Ops = {&exponentials<c10::BFloat16>, &gradient_bf16, &scale<c10::BFloat16>};
constexpr ScoreOps<float> kF32Ops = {&exponentials<float>, &gradient_f32, &scale<float>};
const ScoreOps<c10::BFloat16>* score_ops_bf16() { return &kBf16Ops; }
const ScoreOps<float>* score_ops_f32() { return &kF32Ops; }

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace switchyard {
namespace {
HWY_EXPORT(score_ops_bf16);
HWY_EXPORT(score_ops_f32);
}  // namespace

template <>
const ScoreOps<c10::BFloat16>& score_ops() {
  return *HWY_DYNAMIC_DISPATCH(score_ops_bf16)();
}
template <>
const ScoreOps<float>& score_ops() {
  return *HWY_DYNAMIC_DISPATCH(score_ops_f32)();
}

}  // namespace switchyard
#endif
