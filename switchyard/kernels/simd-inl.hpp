// What the row loops share: vectors of a row, rounding, exp. Highway's convention for code compiled once for each instruction
// set: each *_ops.cpp includes it again and again.
#if defined(SWITCHYARD_KERNELS_SIMD_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef SWITCHYARD_KERNELS_SIMD_INL_HPP
#undef SWITCHYARD_KERNELS_SIMD_INL_HPP
#else
#define SWITCHYARD_KERNELS_SIMD_INL_HPP
#endif

#include <hwy/highway.h>
#include <hwy/contrib/math/math-inl.h>

#include <cstdint>
#include <cstring>

#include "switchyard/kernels/row_ops.hpp"

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <typename Value>
using Tag = hn::ScalableTag<WideOf<Value>>;
template <typename Value>
using Vec = hn::Vec<Tag<Value>>;

// Whole vectors are read and written directly, the rest of a row through a small buffer: nothing beyond the row is touched.
struct Whole {};
struct Rest {
  int64_t count;
};

template <typename Wide>
HWY_INLINE hn::Vec<hn::ScalableTag<Wide>> load(const Wide* from, Whole) {
  return hn::LoadU(hn::ScalableTag<Wide>(), from);
}

HWY_INLINE hn::Vec<hn::ScalableTag<float>> load(const c10::BFloat16* from, Whole) {
  const hn::ScalableTag<float> wide;
  const hn::RebindToUnsigned<decltype(wide)> bits;
  const hn::Rebind<uint16_t, decltype(wide)> half;
  const auto narrow = hn::LoadU(half, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(wide, hn::ShiftLeft<16>(hn::PromoteTo(bits, narrow)));
}

template <typename Wide>
HWY_INLINE void store(hn::Vec<hn::ScalableTag<Wide>> value, Wide* to, Whole) {
  hn::StoreU(value, hn::ScalableTag<Wide>(), to);
}

// AVX512-BF16 rounds a vector in one instruction; it takes what is below the smallest normal number for 0. Debian's Highway (1.0.3)
// has no name for it. The branch costs less than the nine instructions that do without, which such a processor runs (and tests) only
// under lesser instruction sets.
#if HWY_TARGET <= HWY_AVX3
HWY_INLINE bool rounds_in_one() { return __builtin_cpu_supports("avx512bf16"); }
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, hn::ScalableTag<float>>> rounded_in_one(hn::Vec<hn::ScalableTag<float>> value) {
  hn::Vec<hn::Rebind<uint16_t, hn::ScalableTag<float>>> result;
  asm("vcvtneps2bf16 %1, %0" : "=v"(result.raw) : "v"(value.raw));
  return result;
}
#endif

// The bits of bf16 in the upper half of each lane. Round to nearest, ties to even; NaN stays NaN, which adding to its bits would
// not ensure.
HWY_INLINE hn::Vec<hn::ScalableTag<uint32_t>> rounded_bits(hn::Vec<hn::ScalableTag<float>> value) {
  const hn::ScalableTag<uint32_t> bits;
#if HWY_TARGET <= HWY_AVX3
  if (rounds_in_one()) return hn::ShiftLeft<16>(hn::PromoteTo(bits, rounded_in_one(value)));
#endif
  const auto raw = hn::BitCast(bits, value);
  const auto odd = hn::And(hn::ShiftRight<16>(raw), hn::Set(bits, 1));
  const auto rounded = hn::Add(raw, hn::Add(odd, hn::Set(bits, 0x7FFF)));
  return hn::IfThenElse(hn::RebindMask(bits, hn::IsNaN(value)), hn::Set(bits, 0x7FC00000), rounded);
}

HWY_INLINE void store_rounded(hn::Vec<hn::ScalableTag<uint32_t>> rounded, c10::BFloat16* to) {
  const hn::RebindToSigned<hn::ScalableTag<uint32_t>> signed_bits;
  const hn::Rebind<uint16_t, hn::ScalableTag<float>> half;
  const auto narrow = hn::DemoteTo(half, hn::BitCast(signed_bits, hn::ShiftRight<16>(rounded)));
  hn::StoreU(narrow, half, reinterpret_cast<uint16_t*>(to));
}

HWY_INLINE void store(hn::Vec<hn::ScalableTag<float>> value, c10::BFloat16* to, Whole) {
#if HWY_TARGET <= HWY_AVX3
  if (rounds_in_one()) {
    hn::StoreU(rounded_in_one(value), hn::Rebind<uint16_t, hn::ScalableTag<float>>(), reinterpret_cast<uint16_t*>(to));
    return;
  }
#endif
  store_rounded(rounded_bits(value), to);
}

template <typename Value>
HWY_INLINE Vec<Value> load(const Value* from, Rest rest) {
  HWY_ALIGN Value buffer[hn::MaxLanes(Tag<Value>())] = {};  // GCC clears it in whole vectors, under ASan at any address
  std::memcpy(static_cast<void*>(buffer), from, static_cast<size_t>(rest.count) * sizeof(Value));
  return load(buffer, Whole());
}

template <typename Value>
HWY_INLINE void store(Vec<Value> value, Value* to, Rest rest) {
  HWY_ALIGN Value buffer[hn::MaxLanes(Tag<Value>())];
  store(value, buffer, Whole());
  std::memcpy(static_cast<void*>(to), buffer, static_cast<size_t>(rest.count) * sizeof(Value));
}

template <typename Value, typename Body>
HWY_INLINE void for_each_vector(int64_t width, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag<Value>()));
  int64_t i = 0;
  for (; i + lanes <= width; i += lanes) body(i, Whole());
  if (i < width) body(i, Rest{width - i});
}

// What a vector adds to a sum or a maximum: all of it, or only the lanes that are in the row.
template <typename V, typename D>
HWY_INLINE V only(D, V value, V /*other*/, Whole) { return value; }
template <typename V, typename D>
HWY_INLINE V only(D d, V value, V other, Rest rest) {
  return hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(rest.count)), value, other);
}

template <typename D, typename V>
HWY_INLINE hn::TFromD<D> total(D d, V value) { return hn::GetLane(hn::SumOfLanes(d, value)); }

// exp for arguments up to 0, as all of ours are; NaN stays NaN. In fp32 2^n * 2^f with f in [-1/2, 1/2] by a polynomial whose
// relative error is 7.5e-8 (fitted to the relative error; arguments near the smallest normal result add 1e-6, without fused
// multiplication and addition 7e-6): half the instructions of hwy's. Below -87 the result is 0.
HWY_INLINE hn::Vec<hn::ScalableTag<float>> exp_below_zero(hn::ScalableTag<float> d, hn::Vec<hn::ScalableTag<float>> value) {
  const hn::RebindToSigned<decltype(d)> whole;
  const auto per_e = hn::Set(d, 1.44269504F);
  const auto to_integer = hn::Set(d, 12582912.0F);  // 1.5 * 2^23: what is added to it is rounded to an integer
  const auto shifted = hn::MulAdd(value, per_e, to_integer);
  const auto f = hn::MulSub(value, per_e, hn::Sub(shifted, to_integer));
  auto power = hn::Set(d, 0.0013276470F);
  power = hn::MulAdd(power, f, hn::Set(d, 0.0096755410F));
  power = hn::MulAdd(power, f, hn::Set(d, 0.0555071309F));
  power = hn::MulAdd(power, f, hn::Set(d, 0.2402212024F));
  power = hn::MulAdd(power, f, hn::Set(d, 0.6931469440F));
  power = hn::MulAdd(power, f, hn::Set(d, 1.0000001192F));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(whole, shifted));
  const auto result = hn::BitCast(d, hn::Add(hn::BitCast(whole, power), exponent));
  return hn::IfThenElse(hn::IsNaN(value), value, hn::IfThenZeroElse(hn::Lt(value, hn::Set(d, -87.0F)), result));
}

HWY_INLINE hn::Vec<hn::ScalableTag<double>> exp_below_zero(hn::ScalableTag<double> d, hn::Vec<hn::ScalableTag<double>> value) {
  return hn::IfThenElse(hn::IsNaN(value), value, hn::Exp(d, value));  // which makes zero of NaN
}

// 1 / value. In fp32 the processor's approximation and two of Newton's steps: a third of the time of a division.
HWY_INLINE hn::Vec<hn::ScalableTag<float>> inverse(hn::ScalableTag<float> d, hn::Vec<hn::ScalableTag<float>> value) {
  auto result = hn::ApproximateReciprocal(value);
  for (int step = 0; step < 2; ++step) result = hn::Mul(result, hn::NegMulAdd(value, result, hn::Set(d, 2.0F)));
  return result;
}
HWY_INLINE hn::Vec<hn::ScalableTag<double>> inverse(hn::ScalableTag<double> d, hn::Vec<hn::ScalableTag<double>> value) {
  return hn::Div(hn::Set(d, 1.0), value);
}

template <typename D, typename V>
HWY_INLINE V sigmoid(D d, V value) {
  // Through exp(-|x|), which cannot overflow.
  const auto one = hn::Set(d, 1);
  const auto small = exp_below_zero(d, hn::Neg(hn::Abs(value)));
  const auto numerator = hn::IfThenElse(hn::Lt(value, hn::Zero(d)), small, one);
  return hn::Mul(numerator, inverse(d, hn::Add(one, small)));
}

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#endif
