#pragma once
// Products of any size by tiles: the right-hand matrix is laid out once in panels of columns, the left one is met 64 rows at a time.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {

inline constexpr int64_t kTileRows = 64;
inline constexpr int64_t kPanelColumns = 128;
inline constexpr int64_t kPanelLeading = kPanelColumns + 16;  // no power of two, see MatrixView

// A product over rows has a multiple of so many, filled up with zeros: the sizes that occur are few.
inline constexpr int64_t kRowUnit = 32;
// Numbers from the end of a row to the next, no power of two either: of bf16, of fp32.
inline constexpr int64_t kPad = 32, kPadFloats = 16;
// Rows of fp32 that are whole pages apart fall on the same lines of the cache.
inline constexpr int64_t kFloatsOfPage = 4096 / sizeof(float);

/// From one row of `width` fp32 numbers to the next, so that Panels reads them as they lie.
[[nodiscard]] constexpr int64_t padded_floats(int64_t width) {
  const int64_t leading = width + kPadFloats;
  return leading % kFloatsOfPage == 0 ? leading + kPadFloats : leading;
}

/// A right-hand matrix in panels of kPanelColumns columns. In bf16 the number of rows is even.
template <typename Value>
class Panels {
 public:
  /// Numbers of memory that a matrix takes.
  [[nodiscard]] static int64_t numbers(int64_t rows, int64_t columns) {
    return at::divup(columns, kPanelColumns) * kPanelLeading * rows;
  }
  Panels(Value* memory, int64_t rows, int64_t columns) : memory_(memory), rows_(rows), columns_(columns) {}

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t columns() const { return columns_; }

  /// Becomes `given` [up to rows, columns]; rows that are missing are zero. May refer to `given` from then on.
  void take(const MatrixView<const Value>& given) {
    if (can_stay(given)) {
      from_ = given.data;
      step_ = kPanelColumns;
      leading_ = given.leading;
      return;
    }
    lay_out([&](int64_t column, const RightMatrix<Value>& panel) {
      layout_ops<Value>().as_right({given.data + column, given.rows, panel.columns, given.leading}, panel);
    });
  }
  /// Becomes the transpose of `given` [columns, rows].
  void take_transposed(const MatrixView<const Value>& given) {
    lay_out([&](int64_t column, const RightMatrix<Value>& panel) {
      layout_ops<Value>().transpose_as_right(
          {given.data + column * given.leading, panel.columns, given.columns, given.leading}, panel);
    });
  }

  /// body(first column, panel)
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t column = 0; column < columns_; column += kPanelColumns) {
      body(column, RightMatrix<const Value>{from_ + column / kPanelColumns * step_, rows_,
                                            std::min(kPanelColumns, columns_ - column), leading_});
    }
  }

 private:
  [[nodiscard]] bool can_stay(const MatrixView<const Value>& given) const {
    return kStaysWide<Value> && given.rows == rows_ && given.leading % kFloatsOfPage != 0;
  }

  template <typename Body>
  void lay_out(const Body& body) {
    from_ = memory_;
    step_ = kPanelLeading * rows_;
    leading_ = kPanelLeading;
    for (int64_t column = 0; column < columns_; column += kPanelColumns) {
      body(column, RightMatrix<Value>{memory_ + column / kPanelColumns * step_, rows_, std::min(kPanelColumns, columns_ - column),
                                      leading_});
    }
  }

  Value* memory_;
  int64_t rows_, columns_;
  const Value* from_ = nullptr;  // of the first panel
  int64_t step_ = 0;             // numbers from a panel to the next
  int64_t leading_ = 0;
};

/// out = left * right, in fp32 rounded to bf16. left may have more rows than out, so that few sizes occur: ATen generates code for
/// each.
void multiply(const MatrixView<const c10::BFloat16>& left, const Panels<c10::BFloat16>& right,
              const MatrixView<c10::BFloat16>& out);
void multiply(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out);

/// out = (left * right)^T, for a left matrix so much larger than the others that it had better stay as it lies. right may have more
/// columns than out has rows.
void multiply_transposed(const MatrixView<const c10::BFloat16>& left, const Panels<c10::BFloat16>& right,
                         const MatrixView<c10::BFloat16>& out);
void multiply_transposed(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out);

/// out = left * right, or out += left * right, in fp32. right may have more rows than take part: left.columns do.
void multiply(const MatrixView<const c10::BFloat16>& left, const Panels<c10::BFloat16>& right, const MatrixView<float>& out,
              TileSum sum);
void multiply(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out, TileSum sum);

}  // namespace switchyard
