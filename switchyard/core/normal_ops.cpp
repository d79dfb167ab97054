#include "switchyard/core/normal_ops.hpp"

#include <numbers>

// This file is compiled once for each instruction set; Highway includes it again from foreach_target.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "switchyard/core/normal_ops.cpp"
#include <hwy/foreach_target.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// [0, 1): the upper 53 bits.
template <class D>
HWY_INLINE hn::Vec<D> to_unit(D d, const uint64_t* words) {
  const hn::RebindToSigned<D> integers;
  const hn::Rebind<uint64_t, D> unsigned_integers;
  const auto upper = hn::ShiftRight<11>(hn::LoadU(unsigned_integers, words));
  return hn::Mul(hn::ConvertTo(d, hn::BitCast(integers, upper)), hn::Set(d, 0x1.0p-53));
}

// As many pairs as a vector has lanes.
template <class D>
HWY_INLINE void one_vector(D d, const uint64_t* radius_words, const uint64_t* angle_words, double deviation, float* out) {
  const hn::Rebind<float, D> floats;
  const auto above_zero = hn::Add(to_unit(d, radius_words), hn::Set(d, 0x1.0p-53));
  const auto radius = hn::Sqrt(hn::Mul(hn::Set(d, -2.0), hn::Log(d, above_zero)));
  const auto angle = hn::Mul(hn::Set(d, 2.0 * std::numbers::pi), to_unit(d, angle_words));
  const auto scale = hn::Set(d, deviation);
  const auto cosines = hn::DemoteTo(floats, hn::Mul(scale, hn::Mul(radius, hn::Cos(d, angle))));
  const auto sines = hn::DemoteTo(floats, hn::Mul(scale, hn::Mul(radius, hn::Sin(d, angle))));
  hn::StoreInterleaved2(cosines, sines, floats, out);
}

void fill(const uint64_t* radius_words, const uint64_t* angle_words, int64_t pairs, double deviation, float* out) {
  const hn::ScalableTag<double> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= pairs; i += lanes) one_vector(d, radius_words + i, angle_words + i, deviation, out + 2 * i);
  const hn::CappedTag<double, 1> single;
  for (; i < pairs; ++i) one_vector(single, radius_words + i, angle_words + i, deviation, out + 2 * i);
}

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace switchyard {

HWY_EXPORT(fill);

void normals_from_words(const uint64_t* radius_words, const uint64_t* angle_words, int64_t pairs, double deviation, float* out) {
  HWY_DYNAMIC_DISPATCH(fill)(radius_words, angle_words, pairs, deviation, out);
}

}  // namespace switchyard

#endif  // HWY_ONCE
