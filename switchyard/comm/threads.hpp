#pragma once
// Ranks as threads of one process: for tests, for checking layouts without mpirun, and under the thread sanitizer.

#include <cstdint>
#include <functional>

#include "switchyard/comm/communicator.hpp"

namespace switchyard {

/// Runs body(communicator) on num_ranks threads, rank 0 to num_ranks - 1, and returns when all have returned.
///
/// When a body throws, the others are woken out of their collectives (and kept out of new ones) with a CommError that names the
/// rank that failed and why; the first exception is rethrown here. A rank that waits for one that has returned already gets a
/// CommError at once. The communicator must not be used after its body has returned.
/// @throws UsageError unless num_ranks >= 1
void run_ranks(int64_t num_ranks, const std::function<void(Communicator&)>& body);

}  // namespace switchyard
