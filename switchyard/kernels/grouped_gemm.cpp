#include "switchyard/kernels/grouped_gemm.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace switchyard {
namespace {

// Whole groups are dealt to the threads by their rows, each a product of one thread: threads that share one group's product wait
// for each other longer than it takes. What a group gets does not depend on who computes it.
template <typename Body>
void for_each_group(std::span<const int64_t> offsets, const Body& body) {
  const int64_t num_tasks = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t num_rows = std::max<int64_t>(offsets.back(), 1);
  at::parallel_for(0, num_tasks, 1, [&](int64_t first_task, int64_t last_task) {
    const c10::NoGradGuard no_grad;  // of this thread
    for (size_t group = 0; group + 1 < offsets.size(); ++group) {
      const int64_t begin = offsets[group], end = offsets[group + 1];
      const int64_t task = std::min(num_tasks - 1, (begin + end) / 2 * num_tasks / num_rows);
      if (task >= first_task && task < last_task) body(static_cast<int64_t>(group), begin, end - begin);
    }
  });
}

}  // namespace

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
