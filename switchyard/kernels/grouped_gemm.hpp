#pragma once
// Matrix products over consecutive rows that belong to different weights. A rows in E groups, X and Y widths.

#include <ATen/core/Tensor.h>

#include <span>

namespace switchyard {

/// out rows of group e = rows of group e * weight[e]^T.
/// @param weight_EYX  [E, Y, X]
/// @param offsets     E + 1 row numbers, rising from 0 to A
/// @return [A, Y]
[[nodiscard]] at::Tensor grouped_rows_times_transposed(const at::Tensor& rows_AX, const at::Tensor& weight_EYX,
                                                       std::span<const int64_t> offsets);

/// out rows of group e = rows of group e * weight[e].
/// @param weight_EYX  [E, Y, X]
/// @return [A, X]
[[nodiscard]] at::Tensor grouped_rows_times(const at::Tensor& rows_AY, const at::Tensor& weight_EYX,
                                            std::span<const int64_t> offsets);

/// out[e] = left rows of group e, transposed, * right rows of group e; zero for an empty group.
/// @return [E, Y, X]
[[nodiscard]] at::Tensor grouped_outer(const at::Tensor& left_AY, const at::Tensor& right_AX,
                                       std::span<const int64_t> offsets);

}  // namespace switchyard
