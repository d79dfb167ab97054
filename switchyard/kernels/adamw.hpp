#pragma once
// One update of AdamW on one tensor, in one pass over memory: gradient scaled, moments, weights in one piece or in halves. And the
// sum of squares that clipping needs.

#include <ATen/core/Tensor.h>

namespace switchyard {

///   g = gradient_scale * gradient
///   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
///   w = keep w - rate m / (root_scale sqrt(v) + epsilon)
struct AdamWFactors {
  double gradient_scale = 1.0;
  double beta1 = 0.0, beta2 = 0.0;
  double keep = 1.0;        // 1 - learning rate * weight decay
  double rate = 0.0;        // learning rate / (1 - beta1^t)
  double root_scale = 1.0;  // 1 / sqrt(1 - beta2^t)
  double epsilon = 0.0;
};

struct AdamWTensors {
  at::Tensor weight;    // fp32 or double; or bf16, the upper half of fp32 weights (kernels/halves.hpp)
  at::Tensor lower;     // int16, the lower half, beside bf16 weights; else undefined
  at::Tensor gradient;  // bf16 or fp32; double beside double weights
  at::Tensor first;     // fp32, or bf16 and then rounded after the weights have moved by it; double beside double weights
  at::Tensor second;    // as first
};

/// In place; weights and moments are contiguous.
/// @throws ShapeError when sizes or types do not fit
void adamw_update(const AdamWTensors& tensors, const AdamWFactors& factors);
void adamw_update_reference(const AdamWTensors& tensors, const AdamWFactors& factors);

/// Sum of all squares, blocks in fp32 (double for double) and their sums in double; the same bits for any number of threads.
[[nodiscard]] double sum_of_squares(const at::Tensor& values);

}  // namespace switchyard
