#pragma once
// Memory that stays with the process.

namespace switchyard {

enum class MemoryKept { No, Yes };

/// Gives ATen's tensors memory from one region that is never handed back, in huge pages where the system has them. malloc's own
/// answers cost a training step: what it gives back faults again on first touch, and what it keeps falls to pieces until the
/// process holds twice what its tensors need. For programs, before they make tensors; the setting is process-wide and lasts;
/// a second call changes nothing. A child of fork() has the region as it was and may make tensors too.
/// @return No, and nothing is changed, where such a region cannot be had (not Linux, address space limited) or where a sanitizer
///         should see each tensor's own memory
MemoryKept keep_freed_memory();

}  // namespace switchyard
