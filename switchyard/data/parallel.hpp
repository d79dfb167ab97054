#pragma once

#include <cstdint>
#include <functional>

namespace switchyard {

/// Runs task(0) .. task(count - 1) on up to num_threads threads and waits. After a task throws no new one is begun; the
/// error of the lowest index is thrown on.
void run_in_parallel(int64_t count, int64_t num_threads, const std::function<void(int64_t)>& task);

}  // namespace switchyard
