#pragma once
// Whether a run can fit into this machine at all. Where it cannot, the system would end the process without a word.

#include "switchyard/train/run_config.hpp"

namespace switchyard {

/// Bytes of RAM, whoever uses them.
[[nodiscard]] double machine_memory();

/// Bytes that each of `num_ranks` processes holds from the first step to the last: weights and moments.
[[nodiscard]] double least_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks);

/// Bytes that a step adds at least on each rank: its tokens, and what enters each layer of one forward. A step needs more, and
/// forwards that wait for their backward more still, so a run that needs less than the machine has may not fit all the same.
[[nodiscard]] double least_step_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks);

/// @param ranks_here  of the ranks, those that share `memory`, 1 or more
/// @throws ConfigError where what they hold at least is more than `memory`, weights and tokens told apart
void check_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks, int64_t ranks_here, double memory);

}  // namespace switchyard
