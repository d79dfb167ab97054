#pragma once
// Sums of outer products of rows, by tiles: the gradient of a large matrix over many chunks of tokens. C rows of a chunk, D and V
// widths.

#include <ATen/core/Tensor.h>

#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {

/// bf16 or fp32 on a processor with tile products of them.
[[nodiscard]] bool has_tile_outer(const at::Tensor& rows_CD);

/// Uninitialised, for add_tile_outer(): fp32 [D, V] whose rows lie apart as the processor's caches like it.
[[nodiscard]] at::Tensor make_outer_sum(int64_t width, int64_t columns);

/// sum_DV = or += rows_CD^T * values_CV, in fp32; the same bits for any number of threads.
void add_tile_outer(const at::Tensor& sum_DV, const at::Tensor& rows_CD, const at::Tensor& values_CV, TileSum sum);

/// factor * sum_DV, transposed and rounded to bf16 or left in fp32: [V, D]
[[nodiscard]] at::Tensor scaled_transpose(const at::Tensor& sum_DV, double factor, at::ScalarType type);

}  // namespace switchyard
