#pragma once
// Token embedding. T tokens, V vocabulary, D width.

#include <ATen/core/Tensor.h>

namespace switchyard {

/// Rows of the table, converted to `type`. The gradient is summed in fp32 (double for double), which matters for frequent
/// tokens, and returned in the type of the table.
/// @throws ShapeError for an id outside [0, V)
[[nodiscard]] at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& ids_T, at::ScalarType type);

}  // namespace switchyard
