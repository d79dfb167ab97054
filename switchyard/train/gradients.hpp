#pragma once
// Adds up over ranks what the backwards of a step left on each.

#include <cstdint>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/parameter.hpp"

namespace switchyard {

/// Numbers that travel in one message. Large enough that a message's fixed cost (some 10 us, docs/comm.md) is lost beside its
/// transfer (about 1 ms); small enough that the copies that MPI makes of it stay near the processor's caches.
inline constexpr int64_t kMessageNumbers = int64_t{1} << 20;

/// Parameter::grad of every trained parameter becomes the sum over ranks, in rank order: the same bits on every rank. Of a parameter
/// whose update is shared each rank gets what all have of its rows, in Parameter::grad_parts. A gradient that is undefined on one rank
/// counts as zeros. Sharded parameters are left out: theirs is complete on the rank that holds them. Collective, in the order of the
/// parameters; it runs after the last backward and does not overlap with it. One rank's gradients stay as they are.
/// @throws CommError also where ranks have other parameters
void sum_gradients(const ParameterRefs& parameters, Communicator& comm);

/// Adds `gradient`, whole and the same on every rank, to what sum_gradients() left, or a backward on one rank. No messages.
void add_to_gradient(Parameter& parameter, const at::Tensor& gradient);

}  // namespace switchyard
