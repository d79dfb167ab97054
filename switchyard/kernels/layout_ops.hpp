#pragma once
// Copies of matrices into the layouts that products by tiles read, in SIMD (Highway). No tensors here.

#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {

template <typename Value>
struct LayoutOps {
  /// out = given; rows that out has more are zero.
  void (*as_right)(const MatrixView<const Value>& given, const RightMatrix<Value>& out);
  /// out = given^T; bf16: given has an even number of columns and an even leading dimension. Columns that out has more are zero.
  void (*transpose_as_right)(const MatrixView<const Value>& given, const RightMatrix<Value>& out);
  /// out = given^T; columns that out has more are zero.
  void (*transpose)(const MatrixView<const Value>& given, const MatrixView<Value>& out);
};

/// Value: c10::BFloat16 or float.
template <typename Value>
[[nodiscard]] const LayoutOps<Value>& layout_ops();
template <>
const LayoutOps<c10::BFloat16>& layout_ops();
template <>
const LayoutOps<float>& layout_ops();

}  // namespace switchyard
