#include "switchyard/kernels/tile_product.hpp"

#include <ATen/native/CPUBlas.h>

#include <algorithm>

namespace switchyard {

using c10::BFloat16;

bool has_tile_products() { return at::native::cpublas::could_pack(at::kBFloat16); }

TileProducts::~TileProducts() { at::native::cpublas::brgemm_release(); }

void tile_product(const Matrix<const BFloat16>& left, const PairedMatrix& right, const Matrix<float>& out, TileSum sum) {
  at::native::cpublas::brgemm(out.rows, out.columns, left.columns, left.leading, right.leading, out.leading, sum == TileSum::Add,
                              left.data, right.data, out.data);
}

void pair_rows(const Matrix<const BFloat16>& given, const PairedMatrix& out) {
  for (int64_t row = 0; row < out.rows; row += 2) {
    BFloat16* to = out.data + row * out.leading;
    const BFloat16* upper = given.data + row * given.leading;
    const BFloat16* lower = upper + given.leading;
    if (row + 1 < given.rows) {
      for (int64_t i = 0; i < given.columns; ++i) {
        to[2 * i] = upper[i];
        to[2 * i + 1] = lower[i];
      }
    } else {
      for (int64_t i = 0; i < given.columns; ++i) {
        to[2 * i] = row < given.rows ? upper[i] : BFloat16(0);
        to[2 * i + 1] = BFloat16(0);
      }
    }
  }
}

void pair_rows_of_transposed(const Matrix<const BFloat16>& given, const PairedMatrix& out) {
  for (int64_t pair = 0; pair < given.columns / 2; ++pair) {
    BFloat16* to = out.data + 2 * pair * out.leading;
    const BFloat16* from = given.data + 2 * pair;
    for (int64_t row = 0; row < given.rows; ++row) {
      to[2 * row] = from[row * given.leading];
      to[2 * row + 1] = from[row * given.leading + 1];
    }
    std::fill(to + 2 * given.rows, to + 2 * out.columns, BFloat16(0));
  }
}

void transpose(const Matrix<const BFloat16>& given, const Matrix<BFloat16>& out) {
  for (int64_t column = 0; column < given.columns; ++column) {
    BFloat16* to = out.data + column * out.leading;
    for (int64_t row = 0; row < given.rows; ++row) to[row] = given.data[row * given.leading + column];
    std::fill(to + given.rows, to + out.columns, BFloat16(0));
  }
}

}  // namespace switchyard
