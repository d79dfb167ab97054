#include "switchyard/kernels/tile_product.hpp"

#include <ATen/native/CPUBlas.h>

#include <array>
#include <exception>

namespace switchyard {

using c10::BFloat16;

namespace {

template <typename Value>
void multiply_tile(const MatrixView<const Value>& left, const RightMatrix<const Value>& right, const MatrixView<float>& out,
                   TileSum sum) {
  at::native::cpublas::brgemm(out.rows, out.columns, left.columns, left.leading, right.leading, out.leading, sum == TileSum::Add,
                              left.data, right.data, out.data);
}

// Whether (1, 2) times `right`, rows (3, 4) and (5, 6), comes out right. What brgemm can do depends on the processor, on how PyTorch
// was built and on ONEDNN_MAX_CPU_ISA, and only a call tells: where it cannot, it throws.
template <typename Value>
bool multiplies(std::array<Value, 4> right) {
  const std::array<Value, 2> left = {1, 2};
  std::array<float, 2> out = {0, 0};
  try {
    multiply_tile<Value>({left.data(), 1, 2, 2}, {right.data(), 2, 2, 2}, {out.data(), 1, 2, 2}, TileSum::Overwrite);
    at::native::cpublas::brgemm_release();
  } catch (const std::exception&) {
    return false;
  }
  return out == std::array<float, 2>{13, 16};
}

}  // namespace

bool has_tile_products(c10::ScalarType type) {
  static const bool pairs = multiplies<BFloat16>({3, 5, 4, 6});
  static const bool wide = multiplies<float>({3, 4, 5, 6});
  return (type == c10::kBFloat16 && pairs) || (type == c10::kFloat && wide);
}

TileProducts::~TileProducts() { at::native::cpublas::brgemm_release(); }

void tile_product(const MatrixView<const BFloat16>& left, const RightMatrix<const BFloat16>& right, const MatrixView<float>& out,
                  TileSum sum) {
  multiply_tile<BFloat16>(left, right, out, sum);
}

void tile_product(const MatrixView<const float>& left, const RightMatrix<const float>& right, const MatrixView<float>& out,
                  TileSum sum) {
  multiply_tile<float>(left, right, out, sum);
}

}  // namespace switchyard
