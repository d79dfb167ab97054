#include "switchyard/kernels/tile_panels.hpp"

#include "switchyard/kernels/row_ops.hpp"

namespace switchyard {

using c10::BFloat16;

namespace {

template <typename Value>
void multiply_rows(const MatrixView<const Value>& left, const Panels<Value>& right, const MatrixView<Value>& out) {
  alignas(64) float sums[kTileRows * kPanelLeading];
  const RowOps<Value>& ops = row_ops<Value>();
  for (int64_t begin = 0; begin < out.rows; begin += kTileRows) {
    const int64_t rows = std::min(kTileRows, left.rows - begin);
    const int64_t stored = std::min(rows, out.rows - begin);
    const MatrixView<const Value> block{left.data + begin * left.leading, rows, left.columns, left.leading};
    right.for_each([&](int64_t column, const RightMatrix<const Value>& panel) {
      if constexpr (kStaysWide<Value>) {
        if (stored == rows) {
          tile_product(block, panel, {out.data + begin * out.leading + column, rows, panel.columns, out.leading}, TileSum::Overwrite);
          return;
        }
      }
      tile_product(block, panel, {sums, rows, panel.columns, kPanelLeading}, TileSum::Overwrite);
      for (int64_t row = 0; row < stored; ++row) {
        ops.store(sums + row * kPanelLeading, out.data + (begin + row) * out.leading + column, panel.columns);
      }
    });
  }
}

template <typename Value>
void multiply_left_as_it_lies(const MatrixView<const Value>& left, const Panels<Value>& right, const MatrixView<Value>& out) {
  alignas(64) float sums[kTileRows * kPanelLeading];
  alignas(64) Value rounded[kStaysWide<Value> ? 1 : kTileRows * kPanelLeading];
  const RowOps<Value>& ops = row_ops<Value>();
  const LayoutOps<Value>& layout = layout_ops<Value>();
  for (int64_t begin = 0; begin < left.rows; begin += kTileRows) {
    const int64_t rows = std::min(kTileRows, left.rows - begin);
    const MatrixView<const Value> block{left.data + begin * left.leading, rows, left.columns, left.leading};
    right.for_each([&](int64_t column, const RightMatrix<const Value>& panel) {
      const int64_t stored = std::min(panel.columns, out.rows - column);
      const MatrixView<Value> to{out.data + column * out.leading + begin, stored, rows, out.leading};
      tile_product(block, panel, {sums, rows, panel.columns, kPanelLeading}, TileSum::Overwrite);
      if constexpr (kStaysWide<Value>) {
        layout.transpose({sums, rows, stored, kPanelLeading}, to);
      } else {
        for (int64_t row = 0; row < rows; ++row) ops.store(sums + row * kPanelLeading, rounded + row * kPanelLeading, stored);
        layout.transpose({rounded, rows, stored, kPanelLeading}, to);
      }
    });
  }
}

template <typename Value>
void add_product(const MatrixView<const Value>& left, const Panels<Value>& right, const MatrixView<float>& out, TileSum sum) {
  right.for_each([&](int64_t column, const RightMatrix<const Value>& panel) {
    for (int64_t begin = 0; begin < left.rows; begin += kTileRows) {
      const int64_t rows = std::min(kTileRows, left.rows - begin);
      tile_product({left.data + begin * left.leading, rows, left.columns, left.leading}, panel,
                   {out.data + begin * out.leading + column, rows, panel.columns, out.leading}, sum);
    }
  });
}

}  // namespace

void multiply(const MatrixView<const BFloat16>& left, const Panels<BFloat16>& right, const MatrixView<BFloat16>& out) {
  multiply_rows<BFloat16>(left, right, out);
}
void multiply(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out) {
  multiply_rows<float>(left, right, out);
}

void multiply_transposed(const MatrixView<const BFloat16>& left, const Panels<BFloat16>& right, const MatrixView<BFloat16>& out) {
  multiply_left_as_it_lies<BFloat16>(left, right, out);
}
void multiply_transposed(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out) {
  multiply_left_as_it_lies<float>(left, right, out);
}

void multiply(const MatrixView<const BFloat16>& left, const Panels<BFloat16>& right, const MatrixView<float>& out, TileSum sum) {
  add_product<BFloat16>(left, right, out, sum);
}
void multiply(const MatrixView<const float>& left, const Panels<float>& right, const MatrixView<float>& out, TileSum sum) {
  add_product<float>(left, right, out, sum);
}

}  // namespace switchyard
