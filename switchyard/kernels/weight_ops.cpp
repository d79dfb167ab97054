#include "switchyard/kernels/weight_ops.hpp"

// This file is compiled once for each instruction set; Highway includes it again from foreach_target.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "switchyard/kernels/weight_ops.cpp"
#include <hwy/foreach_target.h>

#include "switchyard/kernels/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

using Bits = hn::ScalableTag<uint32_t>;

// 16 bits a number, given and taken in the upper half of each lane.
template <typename Part>
HWY_INLINE hn::Vec<Bits> load_upper(const void* from, Part part) {
  return hn::BitCast(Bits(), load(static_cast<const c10::BFloat16*>(from), part));
}
HWY_INLINE void store_upper(hn::Vec<Bits> bits, void* to, Whole) { store_rounded(bits, static_cast<c10::BFloat16*>(to)); }
HWY_INLINE void store_upper(hn::Vec<Bits> bits, void* to, Rest rest) {
  HWY_ALIGN c10::BFloat16 buffer[hn::MaxLanes(Bits())];
  store_upper(bits, buffer, Whole());
  std::memcpy(to, static_cast<const void*>(buffer), static_cast<size_t>(rest.count) * sizeof(c10::BFloat16));
}

// The lower half has a sign: it is negative where the upper one was rounded up.
template <typename Part>
HWY_INLINE Vec<float> load_weights(HalfWeights from, int64_t i, Part part) {
  const hn::ScalableTag<int32_t> d;
  const auto lower = hn::ShiftRight<16>(hn::BitCast(d, load_upper(from.lower + i, part)));
  return hn::BitCast(hn::ScalableTag<float>(), hn::Add(hn::BitCast(d, load_upper(from.upper + i, part)), lower));
}
template <typename Part>
HWY_INLINE void store_weights(Vec<float> weights, HalfWeights to, int64_t i, Part part) {
  const Bits d;
  const auto bits = hn::BitCast(d, weights);
  store_upper(hn::Add(bits, hn::Set(d, 0x8000)), to.upper + i, part);
  store_upper(hn::ShiftLeft<16>(bits), to.lower + i, part);
}

template <typename Wide, typename Part>
HWY_INLINE Vec<Wide> load_weights(WholeWeights<Wide> from, int64_t i, Part part) {
  return load(from.weight + i, part);
}
template <typename Wide, typename Part>
HWY_INLINE void store_weights(Vec<Wide> weights, WholeWeights<Wide> to, int64_t i, Part part) {
  store(weights, to.weight + i, part);
}

template <typename Value, typename Weights, typename Moment>
void adamw(Weights weights, const Value* gradient, Moment* first, Moment* second, int64_t count,
           const AdamWNumbers<WideOf<Value>>& numbers) {
  const Tag<Value> d;
  const auto all = [&](WideOf<Value> value) HWY_ATTR { return hn::Set(d, value); };
  for_each_vector<Value>(count, [&](int64_t i, auto part) HWY_ATTR {
    const auto g = hn::Mul(load(gradient + i, part), all(numbers.gradient_scale));
    const auto m = hn::MulAdd(load(first + i, part), all(numbers.beta1), hn::Mul(g, all(numbers.new_in_first)));
    const auto square = hn::Mul(hn::Mul(g, g), all(numbers.new_in_second));
    const auto v = hn::MulAdd(load(second + i, part), all(numbers.beta2), square);
    const auto root = hn::MulAdd(hn::Sqrt(v), all(numbers.root_scale), all(numbers.epsilon));
    const auto step = hn::Div(hn::Mul(m, all(numbers.rate)), root);
    const auto w = hn::MulSub(load_weights(weights, i, part), all(numbers.keep), step);
    store(m, first + i, part);
    store(v, second + i, part);
    store_weights(w, weights, i, part);
  });
}

void split(const float* whole, HalfWeights halves, int64_t count) {
  for_each_vector<float>(count, [&](int64_t i, auto part) HWY_ATTR { store_weights(load(whole + i, part), halves, i, part); });
}

void join(HalfWeights halves, float* whole, int64_t count) {
  for_each_vector<float>(count, [&](int64_t i, auto part) HWY_ATTR { store(load_weights(halves, i, part), whole + i, part); });
}

template <typename Value>
constexpr AdamWOps<Value> kAdamWOps = {
    &adamw<Value, WholeWeights<float>, float>, &adamw<Value, WholeWeights<float>, c10::BFloat16>,
    &adamw<Value, HalfWeights, float>, &adamw<Value, HalfWeights, c10::BFloat16>};
template <>
constexpr AdamWOps<double> kAdamWOps<double> = {&adamw<double, WholeWeights<double>, double>, nullptr, nullptr, nullptr};
constexpr HalvesOps kHalvesOps = {&split, &join};

const AdamWOps<c10::BFloat16>* bfloat16_adamw() { return &kAdamWOps<c10::BFloat16>; }
const AdamWOps<float>* float_adamw() { return &kAdamWOps<float>; }
const AdamWOps<double>* double_adamw() { return &kAdamWOps<double>; }
const HalvesOps* split_and_join() { return &kHalvesOps; }

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace switchyard {
namespace {
HWY_EXPORT(bfloat16_adamw);
HWY_EXPORT(float_adamw);
HWY_EXPORT(double_adamw);
HWY_EXPORT(split_and_join);
}  // namespace

template <>
const AdamWOps<c10::BFloat16>& adamw_ops() {
  return *HWY_DYNAMIC_DISPATCH(bfloat16_adamw)();
}
template <>
const AdamWOps<float>& adamw_ops() {
  return *HWY_DYNAMIC_DISPATCH(float_adamw)();
}
template <>
const AdamWOps<double>& adamw_ops() {
  return *HWY_DYNAMIC_DISPATCH(double_adamw)();
}

const HalvesOps& halves_ops() { return *HWY_DYNAMIC_DISPATCH(split_and_join)(); }

}  // namespace switchyard
#endif
