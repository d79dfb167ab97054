#pragma once
// Matrix products small enough that their operands stay in cache, on bf16 numbers with fp32 sums: ATen's brgemm. It needs a
// processor that multiplies pairs of bf16 numbers (AMX or AVX512-BF16), and its right-hand matrix in pairs of rows, as that reads it.

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace switchyard {

/// Whether brgemm multiplies pairs here, found by one small product the first time.
[[nodiscard]] bool has_tile_products();

/// A row-major matrix; leading: numbers from one row to the next. Leading dimensions that are large powers of two are slow: their
/// rows fall on the same lines of the cache.
template <typename Value>
struct Matrix {
  Value* data;
  int64_t rows, columns, leading;
};

/// A matrix of an even number of rows, two rows at a time: numbers (0, 0), (1, 0), (0, 1), (1, 1) ... and after 2 * leading numbers
/// those of rows 2 and 3.
struct PairedMatrix {
  c10::BFloat16* data;
  int64_t rows, columns, leading;
};

enum class TileSum { Overwrite, Add };

/// out = left * right, or out += left * right; right may have more rows and columns than take part: left.columns and out.columns do.
void tile_product(const Matrix<const c10::BFloat16>& left, const PairedMatrix& right, const Matrix<float>& out, TileSum sum);

/// What multiplies tiles on a thread holds its matrix unit, where there is one, until this is destroyed.
class TileProducts {
 public:
  TileProducts() = default;
  ~TileProducts();
  TileProducts(const TileProducts&) = delete;
  TileProducts& operator=(const TileProducts&) = delete;
};

}  // namespace switchyard
