#include "switchyard/kernels/tile_panels.hpp"

#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/row_ops.hpp"

namespace switchyard {

using c10::BFloat16;

void Panels::take(const Matrix<const BFloat16>& given) const {
  for_each([&](int64_t column, const PairedMatrix& panel) {
    layout_ops().pair_rows({given.data + column, given.rows, panel.columns, given.leading}, panel);
  });
}

void Panels::take_transposed(const Matrix<const BFloat16>& given) const {
  for_each([&](int64_t column, const PairedMatrix& panel) {
    layout_ops().pair_rows_of_transposed({given.data + column * given.leading, panel.columns, given.columns, given.leading}, panel);
  });
}

void multiply(const Matrix<const BFloat16>& left, const Panels& right, const Matrix<BFloat16>& out) {
  alignas(64) float sums[kTileRows * kPanelLeading];
  const RowOps<BFloat16>& ops = row_ops<BFloat16>();
  for (int64_t begin = 0; begin < out.rows; begin += kTileRows) {
    const int64_t rows = std::min(kTileRows, left.rows - begin);
    const int64_t stored = std::min(rows, out.rows - begin);
    const Matrix<const BFloat16> block{left.data + begin * left.leading, rows, left.columns, left.leading};
    right.for_each([&](int64_t column, const PairedMatrix& panel) {
      tile_product(block, panel, {sums, rows, panel.columns, kPanelLeading}, TileSum::Overwrite);
      for (int64_t row = 0; row < stored; ++row) {
        ops.store(sums + row * kPanelLeading, out.data + (begin + row) * out.leading + column, panel.columns);
      }
    });
  }
}

void multiply(const Matrix<const BFloat16>& left, const Panels& right, const Matrix<float>& out, TileSum sum) {
  right.for_each([&](int64_t column, const PairedMatrix& panel) {
    for (int64_t begin = 0; begin < left.rows; begin += kTileRows) {
      const int64_t rows = std::min(kTileRows, left.rows - begin);
      tile_product({left.data + begin * left.leading, rows, left.columns, left.leading}, panel,
                   {out.data + begin * out.leading + column, rows, panel.columns, out.leading}, sum);
    }
  });
}

}  // namespace switchyard
