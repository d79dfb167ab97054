#pragma once
// What Open MPI needs to start ranks of this program on one machine, and what it tells them.

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

/// Threads of a process beyond which a number is taken for a slip: OpenMP ends the process where the system gives no more.
inline constexpr int64_t kMostThreads = 1024;

/// Ranks that Open MPI started on this machine, this process among them; 1 where it did not.
[[nodiscard]] int64_t ranks_on_this_machine();

/// The command line that starts `program` (its path and arguments) on num_ranks processes: as root too, with more ranks than
/// cores, not bound to cores (bound, all threads of a rank share one core), and each rank with its share of the threads.
/// @param num_threads  OpenMP threads of a rank; 0: the machine's cores divided by the ranks, at least 1
/// @throws UsageError unless 1 to 1024 ranks, 0 to kMostThreads threads and a program is given
[[nodiscard]] std::vector<std::string> mpirun_command(int64_t num_ranks, int64_t num_threads,
                                                      const std::vector<std::string>& program);

}  // namespace switchyard
