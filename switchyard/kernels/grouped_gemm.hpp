#pragma once
// Matrix products over consecutive rows that belong to different weights. A rows in E groups, X and Y widths.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cstdint>
#include <span>

namespace switchyard {

/// body(group, first row, number of rows). Whole groups are dealt to the threads by their rows: threads that share one group's
/// product wait for each other longer than it takes. What a group gets does not depend on who computes it.
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

/// out rows of group e = rows of group e * weight[e]^T.
/// @param weight_EYX  [E, Y, X]
/// @param offsets     E + 1 row numbers, rising from 0 to A
/// @return [A, Y]
[[nodiscard]] at::Tensor grouped_rows_times_transposed(const at::Tensor& rows_AX, const at::Tensor& weight_EYX,
                                                       std::span<const int64_t> offsets);

/// out rows of group e = rows of group e * weight[e].
/// @param weight_EYX  [E, Y, X]
/// @return [A, X]
[[nodiscard]] at::Tensor grouped_rows_times(const at::Tensor& rows_AY, const at::Tensor& weight_EYX,
                                            std::span<const int64_t> offsets);

/// out[e] = left rows of group e, transposed, * right rows of group e; zero for an empty group.
/// @return [E, Y, X]
[[nodiscard]] at::Tensor grouped_outer(const at::Tensor& left_AY, const at::Tensor& right_AX,
                                       std::span<const int64_t> offsets);

}  // namespace switchyard
