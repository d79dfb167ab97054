#include "switchyard/kernels/memory.hpp"

#include <c10/core/CPUAllocator.h>

#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define SWITCHYARD_HAS_ARENA
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#include "switchyard/kernels/free_ranges.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#endif

namespace switchyard {

#ifdef SWITCHYARD_HAS_ARENA
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmall = size_t{64} << 10;  // below: malloc, which is good at it

class TensorArena;

/// In front of each block.
struct alignas(kAlignment) Header {
  TensorArena* arena;  // null: from malloc
  size_t size;         // of header and block
};

class TensorArena : public c10::Allocator {
 public:
  TensorArena(char* begin, size_t size) : begin_(begin), size_(size) {}

  c10::DataPtr allocate(size_t size) override {
    void* block = size == 0 ? nullptr : take(size);
    return {block, block, &give, c10::Device(c10::DeviceType::CPU)};
  }
  [[nodiscard]] c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void* to, const void* from, size_t count) const override { default_copy_data(to, from, count); }

  // A child of fork() has only the thread that forked: were another one at work on the ranges, nobody would end it there.
  void before_fork() { mutex_.lock(); }
  void after_fork() { mutex_.unlock(); }

 private:
  void* take(size_t block_size) {
    const size_t size = rounded_up(block_size + sizeof(Header), kPage);
    if (block_size >= kSmall) {
      const std::lock_guard lock(mutex_);
      const size_t begin = ranges_.take(size);
      if (begin + size <= size_) return new (begin_ + begin) Header{this, size} + 1;
      ranges_.give(begin, size);
    }
    void* memory = std::aligned_alloc(kAlignment, rounded_up(block_size + sizeof(Header), kAlignment));
    if (memory == nullptr) throw std::bad_alloc();
    return new (memory) Header{nullptr, 0} + 1;
  }

  static void give(void* block) {
    if (block == nullptr) return;
    Header* header = static_cast<Header*>(block) - 1;
    if (header->arena == nullptr) {
      std::free(header);
      return;
    }
    TensorArena& arena = *header->arena;
    const std::lock_guard lock(arena.mutex_);
    arena.ranges_.give(static_cast<size_t>(reinterpret_cast<char*>(header) - arena.begin_), header->size);
  }

  char* begin_;
  size_t size_;
  std::mutex mutex_;
  FreeRanges ranges_;
};

TensorArena* arena_of_process = nullptr;  // what pthread_atfork()'s functions, which take no arguments, find it by

// In the parent and the child alike, by the one thread that is in both.
bool survives_forks(TensorArena* arena) {
  arena_of_process = arena;
  const auto unlock = [] { arena_of_process->after_fork(); };
  return pthread_atfork([] { arena_of_process->before_fork(); }, unlock, unlock) == 0;
}

}  // namespace

MemoryKept keep_freed_memory() {
  if (dynamic_cast<TensorArena*>(c10::GetCPUAllocator()) != nullptr) return MemoryKept::Yes;
  // Address space only; pages come when they are touched.
  const size_t size = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) + kHugePage;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return MemoryKept::No;
  const size_t skipped = kHugePage - reinterpret_cast<uintptr_t>(memory) % kHugePage;
  char* begin = static_cast<char*>(memory) + skipped;
  madvise(begin, size - skipped, MADV_HUGEPAGE);  // a refusal costs speed only
  auto arena = std::make_unique<TensorArena>(begin, size - skipped);
  if (!survives_forks(arena.get())) {
    munmap(memory, size);
    return MemoryKept::No;
  }
  c10::SetCPUAllocator(arena.release(), /*priority=*/1);  // which owns it from here on
  return MemoryKept::Yes;
}

#else
MemoryKept keep_freed_memory() { return MemoryKept::No; }
#endif

}  // namespace switchyard
