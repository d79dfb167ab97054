#include "switchyard/kernels/grouped_gemm.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <numeric>

namespace switchyard {
namespace {

// What a group costs besides its rows, in rows: laying out its weights, writing their gradient.
constexpr int64_t kRowsOfAGroup = 32;

int64_t cost(std::span<const int64_t> offsets, size_t group) {
  const int64_t size = offsets[group + 1] - offsets[group];
  return size == 0 ? 1 : size + kRowsOfAGroup;
}

}  // namespace

std::vector<int64_t> deal_groups(std::span<const int64_t> offsets, int64_t num_tasks) {
  std::vector<size_t> by_cost(offsets.size() - 1);
  std::iota(by_cost.begin(), by_cost.end(), size_t{0});
  std::ranges::stable_sort(by_cost, std::ranges::greater{}, [&](size_t group) { return cost(offsets, group); });
  std::vector<int64_t> task_E(by_cost.size()), done(static_cast<size_t>(num_tasks), 0);
  for (const size_t group : by_cost) {
    const auto least = std::ranges::min_element(done);
    *least += cost(offsets, group);
    task_E[group] = least - done.begin();
  }
  return task_E;
}

at::Tensor grouped_rows_times_transposed(const at::Tensor& rows_AX, const at::Tensor& weight_EYX,
                                         std::span<const int64_t> offsets) {
  at::Tensor out_AY = at::empty({rows_AX.size(0), weight_EYX.size(1)}, rows_AX.options());
  for_each_group(offsets, [&](int64_t group, int64_t begin, int64_t size) {
    if (size == 0) return;
    at::Tensor out = out_AY.narrow(0, begin, size);
    at::mm_out(out, rows_AX.narrow(0, begin, size), weight_EYX.select(0, group).t());
  });
  return out_AY;
}

at::Tensor grouped_rows_times(const at::Tensor& rows_AY, const at::Tensor& weight_EYX, std::span<const int64_t> offsets) {
  at::Tensor out_AX = at::empty({rows_AY.size(0), weight_EYX.size(2)}, rows_AY.options());
  for_each_group(offsets, [&](int64_t group, int64_t begin, int64_t size) {
    if (size == 0) return;
    at::Tensor out = out_AX.narrow(0, begin, size);
    at::mm_out(out, rows_AY.narrow(0, begin, size), weight_EYX.select(0, group));
  });
  return out_AX;
}

at::Tensor grouped_outer(const at::Tensor& left_AY, const at::Tensor& right_AX, std::span<const int64_t> offsets) {
  const int64_t num_groups = static_cast<int64_t>(offsets.size()) - 1;
  at::Tensor out_EYX = at::empty({num_groups, left_AY.size(1), right_AX.size(1)}, left_AY.options());
  for_each_group(offsets, [&](int64_t group, int64_t begin, int64_t size) {
    at::Tensor out = out_EYX.select(0, group);
    if (size == 0) {
      out.zero_();
    } else {
      at::mm_out(out, left_AY.narrow(0, begin, size).t(), right_AX.narrow(0, begin, size));
    }
  });
  return out_EYX;
}

}  // namespace switchyard
