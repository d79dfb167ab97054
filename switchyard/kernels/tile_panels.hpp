#pragma once
// Products of any size by tiles: the right-hand matrix is laid out once in panels of columns, the left one is met 64 rows at a time.

#include <algorithm>
#include <cstdint>

#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {

inline constexpr int64_t kTileRows = 64;
inline constexpr int64_t kPanelColumns = 128;
inline constexpr int64_t kPanelLeading = kPanelColumns + 16;  // no power of two, see Matrix

// A product over rows has a multiple of so many, filled up with zeros: the sizes that occur are few.
inline constexpr int64_t kRowUnit = 32;
// Numbers from the end of a row to the next, no power of two either: of bf16, of fp32.
inline constexpr int64_t kPad = 32, kPadFloats = 16;

/// A right-hand matrix in panels of kPanelColumns columns, each a PairedMatrix. The number of rows is even.
class Panels {
 public:
  /// Numbers of memory that a matrix takes.
  [[nodiscard]] static int64_t numbers(int64_t rows, int64_t columns) {
    return (columns + kPanelColumns - 1) / kPanelColumns * kPanelLeading * rows;
  }
  Panels(c10::BFloat16* memory, int64_t rows, int64_t columns) : memory_(memory), rows_(rows), columns_(columns) {}

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return columns_; }

  /// Becomes `given` [up to rows, columns]; rows that are missing are zero.
  void take(const Matrix<const c10::BFloat16>& given) const;
  /// Becomes the transpose of `given` [columns, rows].
  void take_transposed(const Matrix<const c10::BFloat16>& given) const;

  /// body(first column, panel)
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t column = 0; column < columns_; column += kPanelColumns) {
      body(column, PairedMatrix{memory_ + column / kPanelColumns * kPanelLeading * rows_, rows_,
                                std::min(kPanelColumns, columns_ - column), kPanelLeading});
    }
  }

 private:
  c10::BFloat16* memory_;
  int64_t rows_, columns_;
};

/// out = left * right, rounded. left may have more rows than out, so that few sizes occur: ATen generates code for each.
void multiply(const Matrix<const c10::BFloat16>& left, const Panels& right, const Matrix<c10::BFloat16>& out);

/// out = left * right, or out += left * right, in fp32. right may have more rows than take part: left.columns do.
void multiply(const Matrix<const c10::BFloat16>& left, const Panels& right, const Matrix<float>& out, TileSum sum);

}  // namespace switchyard
