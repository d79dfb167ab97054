#include "switchyard/kernels/tile_product.hpp"

#include <ATen/native/CPUBlas.h>

namespace switchyard {

using c10::BFloat16;

bool has_tile_products() { return at::native::cpublas::could_pack(at::kBFloat16); }

TileProducts::~TileProducts() { at::native::cpublas::brgemm_release(); }

void tile_product(const Matrix<const BFloat16>& left, const PairedMatrix& right, const Matrix<float>& out, TileSum sum) {
  at::native::cpublas::brgemm(out.rows, out.columns, left.columns, left.leading, right.leading, out.leading, sum == TileSum::Add,
                              left.data, right.data, out.data);
}

}  // namespace switchyard
