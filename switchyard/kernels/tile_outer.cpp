#include "switchyard/kernels/tile_outer.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/scratch.hpp"
#include "switchyard/kernels/score_ops.hpp"
#include "switchyard/kernels/tile_panels.hpp"

namespace switchyard {
namespace {

constexpr int64_t kSlab = 2 * kPanelColumns;  // columns whose values are laid out at a time

// body(first column, number of columns)
template <typename Body>
void for_each_slab(int64_t columns, const Body& body) {
  at::parallel_for(0, at::divup(columns, kSlab), 1, [&](int64_t first, int64_t last) {
    const c10::NoGradGuard no_grad;  // of this thread
    body(first * kSlab, std::min(last * kSlab, columns));
  });
}

template <typename Value>
void add_outer(const at::Tensor& sum_DV, const at::Tensor& rows_CD, const at::Tensor& values_CV, TileSum sum) {
  const int64_t count = rows_CD.size(0), width = rows_CD.size(1), columns = values_CV.size(1);
  const int64_t filled = rounded_up(count, kRowUnit), leading = filled + kPad;
  const Value* const values = values_CV.const_data_ptr<Value>();
  float* const to = sum_DV.mutable_data_ptr<float>();
  Scratch<Value> rows_scratch(width * leading);
  Value* const rows_t = rows_scratch.take(width * leading);
  layout_ops<Value>().transpose({rows_CD.const_data_ptr<Value>(), count, width, width}, {rows_t, width, filled, leading});
  for_each_slab(columns, [&](int64_t begin, int64_t end) {
    const TileProducts products;
    Scratch<Value> scratch(Panels<Value>::numbers(filled, kSlab));
    Value* const memory = scratch.take(Panels<Value>::numbers(filled, kSlab));
    for (int64_t column = begin; column < end; column += kSlab) {
      const int64_t some = std::min(kSlab, end - column);
      Panels<Value> panels(memory, filled, some);
      panels.take({values + column, count, some, columns});
      multiply({rows_t, width, filled, leading}, panels, {to + column, width, some, sum_DV.stride(0)}, sum);
    }
  });
}

template <typename Value>
void store_transposed(const at::Tensor& sum_DV, float factor, Value* to_VD) {
  const int64_t width = sum_DV.size(0), columns = sum_DV.size(1), leading = width + kPadFloats;
  const float* const from = sum_DV.const_data_ptr<float>();
  for_each_slab(columns, [&](int64_t begin, int64_t end) {
    Scratch<float> scratch(kPanelColumns * leading);
    float* const part = scratch.take(kPanelColumns * leading);
    for (int64_t column = begin; column < end; column += kPanelColumns) {
      const int64_t some = std::min(kPanelColumns, end - column);
      layout_ops<float>().transpose({from + column, width, some, sum_DV.stride(0)}, {part, some, width, leading});
      for (int64_t row = 0; row < some; ++row) {
        score_ops<Value>().scale(part + row * leading, factor, to_VD + (column + row) * width, width);
      }
    }
  });
}

}  // namespace

bool has_tile_outer(const at::Tensor& rows_CD) { return rows_CD.is_cpu() && has_tile_products(rows_CD.scalar_type()); }

at::Tensor make_outer_sum(int64_t width, int64_t columns) {
  return at::empty({width, columns + kPadFloats}, at::kFloat).narrow(1, 0, columns);
}

void add_tile_outer(const at::Tensor& sum_DV, const at::Tensor& rows_CD, const at::Tensor& values_CV, TileSum sum) {
  const KernelScope profiled("outer products");
  for_tile_type(rows_CD.scalar_type(), [&](auto number) { add_outer<decltype(number)>(sum_DV, rows_CD, values_CV, sum); });
}

at::Tensor scaled_transpose(const at::Tensor& sum_DV, double factor, at::ScalarType type) {
  at::Tensor out_VD = at::empty({sum_DV.size(1), sum_DV.size(0)}, type);
  for_tile_type(type, [&](auto number) {
    store_transposed(sum_DV, static_cast<float>(factor), out_VD.mutable_data_ptr<decltype(number)>());
  });
  return out_VD;
}

}  // namespace switchyard
