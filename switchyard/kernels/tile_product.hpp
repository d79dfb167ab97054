#pragma once
// Matrix products small enough that their operands stay in cache, with fp32 sums: ATen's brgemm. Of bf16 numbers it needs a
// processor that multiplies pairs of them (AMX or AVX512-BF16), of fp32 ones AVX2.

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

namespace switchyard {

/// Whether brgemm multiplies numbers of this type here, found by one small product the first time; of other types: no.
[[nodiscard]] bool has_tile_products(c10::ScalarType type);

/// body(number): a float for fp32, a bf16 number for anything else.
template <typename Body>
auto for_tile_type(c10::ScalarType type, const Body& body) {
  return type == c10::ScalarType::Float ? body(0.0F) : body(c10::BFloat16(0.0F));
}

/// fp32 numbers go into the next product as the last one left them; others are rounded on their way.
template <typename Value>
inline constexpr bool kStaysWide = std::is_same_v<Value, float>;

/// A row-major matrix that lies elsewhere; leading: numbers from one row to the next. Leading dimensions that are large powers of two
/// are slow: their rows fall on the same lines of the cache.
template <typename Value>
struct MatrixView {
  Value* data;
  int64_t rows, columns, leading;
};

/// The same as a product reads its right-hand one: of fp32 row-major; of bf16 an even number of rows, two rows at a time: numbers
/// (0, 0), (1, 0), (0, 1), (1, 1) ... and after 2 * leading numbers those of rows 2 and 3. LayoutOps makes them.
template <typename Value>
struct RightMatrix {
  Value* data;
  int64_t rows, columns, leading;

  operator RightMatrix<const Value>() const requires(!std::is_const_v<Value>) { return {data, rows, columns, leading}; }
};

enum class TileSum { Overwrite, Add };

/// out = left * right, or out += left * right; right may have more rows and columns than take part: left.columns and out.columns do.
void tile_product(const MatrixView<const c10::BFloat16>& left, const RightMatrix<const c10::BFloat16>& right,
                  const MatrixView<float>& out, TileSum sum);
void tile_product(const MatrixView<const float>& left, const RightMatrix<const float>& right, const MatrixView<float>& out,
                  TileSum sum);

/// What multiplies tiles on a thread holds its matrix unit, where there is one, until this is destroyed.
class TileProducts {
 public:
  TileProducts() = default;
  ~TileProducts();
  TileProducts(const TileProducts&) = delete;
  TileProducts& operator=(const TileProducts&) = delete;
};

}  // namespace switchyard
