#include "switchyard/kernels/tile_product.hpp"

#include <ATen/native/CPUBlas.h>

#include <array>
#include <exception>

namespace switchyard {

using c10::BFloat16;

namespace {

// What brgemm can do depends on the processor, on how PyTorch was built and on ONEDNN_MAX_CPU_ISA, and only a call tells: where it
// cannot, it throws.
bool multiplies_pairs() {
  const std::array<BFloat16, 2> left = {1, 2};              // 1 x 2
  const std::array<BFloat16, 4> right_pairs = {3, 5, 4, 6};  // rows (3, 4) and (5, 6)
  std::array<float, 2> out = {0, 0};
  try {
    at::native::cpublas::brgemm(1, 2, 2, 2, 2, 2, /*add_C=*/false, left.data(), right_pairs.data(), out.data());
    at::native::cpublas::brgemm_release();
  } catch (const std::exception&) {
    return false;
  }
  return out == std::array<float, 2>{13, 16};
}

}  // namespace

bool has_tile_products() {
  static const bool has = multiplies_pairs();
  return has;
}

TileProducts::~TileProducts() { at::native::cpublas::brgemm_release(); }

void tile_product(const Matrix<const BFloat16>& left, const PairedMatrix& right, const Matrix<float>& out, TileSum sum) {
  at::native::cpublas::brgemm(out.rows, out.columns, left.columns, left.leading, right.leading, out.leading, sum == TileSum::Add,
                              left.data, right.data, out.data);
}

}  // namespace switchyard
