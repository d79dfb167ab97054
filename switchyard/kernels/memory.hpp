#pragma once
// Memory that stays with the process.

namespace switchyard {

enum class MemoryKept { No, Yes };

/// Tells malloc not to give freed memory back to the system: freshly mapped pages fault on first touch, which costs a
/// training step more than its softmax does. For programs, before they allocate; the setting is process-wide.
/// @return No where the C library has no such setting (not glibc)
MemoryKept keep_freed_memory();

}  // namespace switchyard
