#include "switchyard/kernels/layout_ops.hpp"

#include <algorithm>
#include <cstdint>

// This file is compiled once for each instruction set; Highway includes it again from foreach_target.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "switchyard/kernels/layout_ops.cpp"
#include <hwy/foreach_target.h>

#include "switchyard/kernels/simd-inl.hpp"

HWY_BEFORE_NAMESPACE();
namespace switchyard {
namespace HWY_NAMESPACE {

using c10::BFloat16;

void as_right(const MatrixView<const BFloat16>& given, const RightMatrix<BFloat16>& out) {
  const hn::ScalableTag<uint32_t> words;
  const hn::Rebind<uint16_t, decltype(words)> halves;
  const auto lanes = static_cast<int64_t>(hn::Lanes(words));
  for (int64_t row = 0; row < out.rows; row += 2) {
    BFloat16* const to = out.data + row * out.leading;
    const BFloat16* const upper = given.data + row * given.leading;
    const BFloat16* const lower = upper + given.leading;
    const int64_t there = given.rows - row;
    if (there <= 0) {
      std::fill_n(to, 2 * given.columns, BFloat16(0));
      continue;
    }
    int64_t i = 0;
    for (; there > 1 && i + lanes <= given.columns; i += lanes) {
      const auto first = hn::PromoteTo(words, hn::LoadU(halves, reinterpret_cast<const uint16_t*>(upper + i)));
      const auto second = hn::PromoteTo(words, hn::LoadU(halves, reinterpret_cast<const uint16_t*>(lower + i)));
      hn::StoreU(hn::Or(first, hn::ShiftLeft<16>(second)), words, reinterpret_cast<uint32_t*>(to + 2 * i));
    }
    for (; i < given.columns; ++i) {
      to[2 * i] = upper[i];
      to[2 * i + 1] = there > 1 ? lower[i] : BFloat16(0);
    }
  }
}

// In units of `Word`, of which a vector of 128 bits holds kSide: out[column][row] = in[row][column], one square.
#if HWY_TARGET != HWY_SCALAR
HWY_INLINE void transpose_square(const uint32_t* from, int64_t from_leading, uint32_t* to, int64_t to_leading) {
  const hn::Full128<uint32_t> d;
  const hn::Full128<uint64_t> wide;
  const auto row = [&](int64_t i) HWY_ATTR { return hn::LoadU(d, from + i * from_leading); };
  const auto ab_low = hn::BitCast(wide, hn::InterleaveLower(d, row(0), row(1)));
  const auto ab_high = hn::BitCast(wide, hn::InterleaveUpper(d, row(0), row(1)));
  const auto cd_low = hn::BitCast(wide, hn::InterleaveLower(d, row(2), row(3)));
  const auto cd_high = hn::BitCast(wide, hn::InterleaveUpper(d, row(2), row(3)));
  const auto put = [&](int64_t i, auto value) HWY_ATTR { hn::StoreU(hn::BitCast(d, value), d, to + i * to_leading); };
  put(0, hn::InterleaveLower(wide, ab_low, cd_low));
  put(1, hn::InterleaveUpper(wide, ab_low, cd_low));
  put(2, hn::InterleaveLower(wide, ab_high, cd_high));
  put(3, hn::InterleaveUpper(wide, ab_high, cd_high));
}

HWY_INLINE void transpose_square(const uint16_t* from, int64_t from_leading, uint16_t* to, int64_t to_leading) {
  const hn::Full128<uint16_t> d;
  const hn::Full128<uint32_t> wide;
  const hn::Full128<uint64_t> widest;
  const auto row = [&](int64_t i) HWY_ATTR { return hn::LoadU(d, from + i * from_leading); };
  const auto low = [&](int64_t i) HWY_ATTR { return hn::BitCast(wide, hn::InterleaveLower(d, row(i), row(i + 1))); };
  const auto high = [&](int64_t i) HWY_ATTR { return hn::BitCast(wide, hn::InterleaveUpper(d, row(i), row(i + 1))); };
  // Of rows 0 to 3 and 4 to 7: the columns 2 c and 2 c + 1.
  const auto put = [&](int64_t column, auto above, auto below) HWY_ATTR {
    const auto first = hn::BitCast(widest, above);
    const auto second = hn::BitCast(widest, below);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(widest, first, second)), d, to + column * to_leading);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(widest, first, second)), d, to + (column + 1) * to_leading);
  };
  const auto low0 = low(0), low2 = low(2), low4 = low(4), low6 = low(6);
  put(0, hn::InterleaveLower(wide, low0, low2), hn::InterleaveLower(wide, low4, low6));
  put(2, hn::InterleaveUpper(wide, low0, low2), hn::InterleaveUpper(wide, low4, low6));
  const auto high0 = high(0), high2 = high(2), high4 = high(4), high6 = high(6);
  put(4, hn::InterleaveLower(wide, high0, high2), hn::InterleaveLower(wide, high4, high6));
  put(6, hn::InterleaveUpper(wide, high0, high2), hn::InterleaveUpper(wide, high4, high6));
}
#endif

template <typename Word>
void transpose_words(const Word* from, int64_t rows, int64_t columns, int64_t from_leading, Word* to, int64_t to_columns,
                     int64_t to_leading) {
  int64_t whole_rows = 0, whole_columns = 0;
#if HWY_TARGET != HWY_SCALAR
  constexpr int64_t kSide = 16 / sizeof(Word);
  whole_rows = rows / kSide * kSide;
  whole_columns = columns / kSide * kSide;
  for (int64_t column = 0; column < whole_columns; column += kSide) {
    for (int64_t row = 0; row < whole_rows; row += kSide) {
      transpose_square(from + row * from_leading + column, from_leading, to + column * to_leading + row, to_leading);
    }
  }
#endif
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = column < whole_columns ? whole_rows : 0; row < rows; ++row) {
      to[column * to_leading + row] = from[row * from_leading + column];
    }
    std::fill(to + column * to_leading + rows, to + column * to_leading + to_columns, Word(0));
  }
}

void as_right(const MatrixView<const float>& given, const RightMatrix<float>& out) {
  for (int64_t row = 0; row < out.rows; ++row) {
    float* const to = out.data + row * out.leading;
    if (row < given.rows) {
      std::copy_n(given.data + row * given.leading, given.columns, to);
    } else {
      std::fill_n(to, given.columns, 0.0F);
    }
  }
}

// A pair of bf16 numbers is one word.
void transpose_as_right(const MatrixView<const BFloat16>& given, const RightMatrix<BFloat16>& out) {
  transpose_words(reinterpret_cast<const uint32_t*>(given.data), given.rows, given.columns / 2, given.leading / 2,
                  reinterpret_cast<uint32_t*>(out.data), out.columns, out.leading);
}

void transpose(const MatrixView<const BFloat16>& given, const MatrixView<BFloat16>& out) {
  transpose_words(reinterpret_cast<const uint16_t*>(given.data), given.rows, given.columns, given.leading,
                  reinterpret_cast<uint16_t*>(out.data), out.columns, out.leading);
}

void transpose(const MatrixView<const float>& given, const MatrixView<float>& out) {
  transpose_words(reinterpret_cast<const uint32_t*>(given.data), given.rows, given.columns, given.leading,
                  reinterpret_cast<uint32_t*>(out.data), out.columns, out.leading);
}

void transpose_as_right(const MatrixView<const float>& given, const RightMatrix<float>& out) {
  transpose(given, MatrixView<float>{out.data, out.rows, out.columns, out.leading});
}

template <typename Value>
constexpr LayoutOps<Value> kLayoutOps = {&as_right, &transpose_as_right, &transpose};
const LayoutOps<BFloat16>* layout_ops_bf16() { return &kLayoutOps<BFloat16>; }
const LayoutOps<float>* layout_ops_f32() { return &kLayoutOps<float>; }

}  // namespace HWY_NAMESPACE
}  // namespace switchyard
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace switchyard {
namespace {
HWY_EXPORT(layout_ops_bf16);
HWY_EXPORT(layout_ops_f32);
}  // namespace

template <>
const LayoutOps<c10::BFloat16>& layout_ops() {
  return *HWY_DYNAMIC_DISPATCH(layout_ops_bf16)();
}
template <>
const LayoutOps<float>& layout_ops() {
  return *HWY_DYNAMIC_DISPATCH(layout_ops_f32)();
}

}  // namespace switchyard
#endif
