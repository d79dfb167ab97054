#pragma once
// Matrix products over consecutive rows that belong to different weights. A rows in E groups, X and Y widths.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/kernels/parallel_operations.hpp"

namespace switchyard {

/// Which of the tasks works on each group: the largest group first, each given to the task that has least so far. Groups are far
/// from equal: a micro-batch of one domain may send a third of its slots to one expert of 16.
/// @param offsets  E + 1 row numbers, rising from 0
/// @return task_E, from 0 to num_tasks - 1; the same for the same offsets
[[nodiscard]] std::vector<int64_t> deal_groups(std::span<const int64_t> offsets, int64_t num_tasks);

/// body(group, first row, number of rows). Whole groups are dealt to the threads: threads that share one group's product wait for
/// each other longer than it takes. What a group gets does not depend on who computes it.
template <typename Body>
void for_each_group(std::span<const int64_t> offsets, const Body& body) {
  const int64_t num_tasks = at::in_parallel_region() ? 1 : at::get_num_threads();
  const std::vector<int64_t> task_E = deal_groups(offsets, num_tasks);
  parallel_operations(num_tasks, [&](int64_t first_task, int64_t last_task) {
    for (size_t group = 0; group < task_E.size(); ++group) {
      if (task_E[group] < first_task || task_E[group] >= last_task) continue;
      body(static_cast<int64_t>(group), offsets[group], offsets[group + 1] - offsets[group]);
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
