#pragma once
// One update of AdamW on one tensor, in one pass over memory: gradient scaled, moments, weights in one piece or in halves. And the
// sum of squares that clipping needs. A gradient may come in parts, one from each rank: they are added up block by block, in cache.

#include <ATen/core/Tensor.h>

#include <vector>

namespace switchyard {

///   g = gradient_scale * ((gradient_parts[0] + gradient_parts[1]) + ...), in the type of the weights
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
  at::Tensor first;     // fp32, or bf16 and then rounded after the weights have moved by it; double beside double weights
  at::Tensor second;    // as first
  std::vector<at::Tensor> gradient_parts;  // at least one, all bf16 or all fp32; double beside double weights
};

/// In place; weights and moments are contiguous.
/// @throws ShapeError when sizes or types do not fit
void adamw_update(const AdamWTensors& tensors, const AdamWFactors& factors);
void adamw_update_reference(const AdamWTensors& tensors, const AdamWFactors& factors);

/// ((parts[0] + parts[1]) + ...) in fp32 (double for double), by plain ATen operations: the reference of what the two above and below
/// add up block by block.
/// @param parts  at least one, of one shape and one type: bf16, fp32 or double
/// @throws ShapeError
[[nodiscard]] at::Tensor wide_sum(const std::vector<at::Tensor>& parts);

/// Sum of all squares of the sum of `parts`, blocks in fp32 (double for double) and their sums in double; the same bits for any
/// number of threads.
/// @param parts  as of wide_sum()
/// @throws ShapeError
[[nodiscard]] double sum_of_squares(const std::vector<at::Tensor>& parts);

}  // namespace switchyard
