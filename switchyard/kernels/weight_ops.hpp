#pragma once
// Loops over weights, in SIMD (Highway) with the instruction set chosen at run time: AdamW on weights in one piece or in halves, and
// both ways between the two. No tensors here. Any length.

#include <c10/util/BFloat16.h>

#include <cstdint>

#include "switchyard/kernels/row_ops.hpp"

namespace switchyard {

/// What a step of AdamW does to every weight, see kernels/adamw.hpp.
template <typename Wide>
struct AdamWNumbers {
  Wide gradient_scale, beta1, beta2, keep, rate, root_scale, epsilon;
  Wide new_in_first, new_in_second;  // 1 - beta: rounded once, for of a beta in fp32 near 1 little is left
};

/// Weights in fp32 (double for double).
template <typename Wide>
struct WholeWeights {
  Wide* weight;
};
/// fp32 weights in halves, see kernels/halves.hpp.
struct HalfWeights {
  c10::BFloat16* upper;
  int16_t* lower;
};

/// Value: type of the gradient. Moments are in the wide type or in bf16; weights move by them before they are rounded.
template <typename Value>
struct AdamWOps {
  using Wide = WideOf<Value>;
  template <typename Weights, typename Moment>
  using Update = void (*)(Weights weights, const Value* gradient, Moment* first, Moment* second, int64_t count,
                          const AdamWNumbers<Wide>& numbers);

  Update<WholeWeights<Wide>, Wide> whole;
  // Null for double.
  Update<WholeWeights<Wide>, c10::BFloat16> whole_half_moments;
  Update<HalfWeights, Wide> halves;
  Update<HalfWeights, c10::BFloat16> halves_half_moments;
};

/// Value: c10::BFloat16, float or double.
template <typename Value>
[[nodiscard]] const AdamWOps<Value>& adamw_ops();
template <>
const AdamWOps<c10::BFloat16>& adamw_ops();
template <>
const AdamWOps<float>& adamw_ops();
template <>
const AdamWOps<double>& adamw_ops();

struct HalvesOps {
  void (*split)(const float* whole, HalfWeights halves, int64_t count);
  void (*join)(HalfWeights halves, float* whole, int64_t count);
};
[[nodiscard]] const HalvesOps& halves_ops();

}  // namespace switchyard
