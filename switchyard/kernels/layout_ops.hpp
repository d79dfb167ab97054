#pragma once
// Copies of bf16 matrices into the layouts that products by tiles read, in SIMD (Highway). No tensors here.

#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {

struct LayoutOps {
  /// out = given, in pairs of rows; rows that out has more are zero.
  void (*pair_rows)(const Matrix<const c10::BFloat16>& given, const PairedMatrix& out);
  /// out = given^T, in pairs of rows; given has an even number of columns and an even leading dimension. Columns that out has more
  /// are zero.
  void (*pair_rows_of_transposed)(const Matrix<const c10::BFloat16>& given, const PairedMatrix& out);
  /// out = given^T; columns that out has more are zero.
  void (*transpose)(const Matrix<const c10::BFloat16>& given, const Matrix<c10::BFloat16>& out);
  void (*transpose_wide)(const Matrix<const float>& given, const Matrix<float>& out);
};

[[nodiscard]] const LayoutOps& layout_ops();

}  // namespace switchyard
