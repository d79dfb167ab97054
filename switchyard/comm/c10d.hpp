#pragma once
// An existing c10d process group (torch.distributed) as a communicator: gloo, NCCL or whatever made the group.
//
// The group is received, not made: the wheel carries no headers that make one. So split() is refused; make the part in Python
// (torch.distributed.new_group) and wrap it. What differs from our own groups, since the backend does the work:
//   sums of double and float have the backend's order (equal on all ranks with gloo and NCCL, but not promised to be rank
//   order); calls that do not belong together are found by the backend, if at all (TORCH_DISTRIBUTED_DEBUG=DETAIL), or end in a
//   time-out; dropping a Pending waits for it, because the backend would go on writing to its memory.
// Collectives used: allreduce, all_gather_single, all_to_all_single, broadcast, barrier.

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <string>

#include "switchyard/comm/communicator.hpp"

namespace c10d {
class ProcessGroup;
}

namespace switchyard {

/// @param device  where the group's backend wants its tensors; memory is copied to it and back unless it is the CPU
[[nodiscard]] std::unique_ptr<Communicator> make_c10d_communicator(c10::intrusive_ptr<c10d::ProcessGroup> group,
                                                                   c10::Device device);

/// The group that torch.distributed registered under this name (ProcessGroup.group_name in Python).
/// @throws CommError when there is none
[[nodiscard]] std::unique_ptr<Communicator> make_c10d_communicator(const std::string& group_name, c10::Device device);

}  // namespace switchyard
