#include "switchyard/kernels/memory.hpp"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace switchyard {

MemoryKept keep_freed_memory() {
#ifdef __GLIBC__
  constexpr int kNever = 2'000'000'000;
  constexpr int kGrowBy = 64 << 20;
  // Not M_MMAP_THRESHOLD: glibc refuses more than 32 MB there, and larger blocks would still be mapped anew each time.
  const bool done =
      mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, kNever) == 1 && mallopt(M_TOP_PAD, kGrowBy) == 1;
  return done ? MemoryKept::Yes : MemoryKept::No;
#else
  return MemoryKept::No;
#endif
}

}  // namespace switchyard
