// Tensors from the region that the process keeps. The setting lasts, so tests that run after this one have it too.

#include "switchyard/kernels/memory.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace switchyard {
namespace {

constexpr uintptr_t kAlignment = 64;

bool is_aligned(const at::Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0; }

TEST(KeptMemory, TensorsOfAllSizesAreAlignedAndKeepWhatIsWritten) {
  if (keep_freed_memory() == MemoryKept::No) GTEST_LOG_(INFO) << "no region here; the tests below hold for malloc as well";
  std::vector<at::Tensor> kept;
  for (int64_t round = 0; round < 3; ++round) {
    for (int64_t size = 1; size < (int64_t{1} << 22); size = size * 3 + 1) {
      kept.push_back(at::full({size}, static_cast<double>(size + round), at::kFloat));
      static_cast<void>(at::full({size + 1000}, -1.0, at::kFloat));  // given back at once
    }
    if (round == 1) kept.erase(kept.begin(), kept.begin() + std::ssize(kept) / 2);
  }
  for (const at::Tensor& tensor : kept) {
    EXPECT_TRUE(is_aligned(tensor));
    EXPECT_TRUE(tensor.eq(tensor.const_data_ptr<float>()[0]).all().item<bool>());
    EXPECT_GE(tensor.const_data_ptr<float>()[0], static_cast<float>(tensor.numel()));
  }
  EXPECT_EQ(at::empty({0}, at::kFloat).numel(), 0);
}

TEST(KeptMemory, ABlockThatIsGivenBackIsUsedAgain) {
  const bool kept = keep_freed_memory() == MemoryKept::Yes;  // not under a sanitizer, which keeps freed blocks apart
  const void* place = nullptr;
  {
    const at::Tensor first = at::empty({1 << 20}, at::kFloat);
    place = first.const_data_ptr();
  }
  EXPECT_TRUE(!kept || at::empty({1 << 20}, at::kFloat).const_data_ptr() == place);
}

TEST(KeptMemory, ThreadsDoNotGetInEachOthersWay) {
  static_cast<void>(keep_freed_memory());
  std::vector<std::thread> threads;
  std::vector<int64_t> wrong(4, 0);
  for (int64_t number = 0; number < 4; ++number) {
    threads.emplace_back([number, &wrong] {
      for (int64_t round = 0; round < 200; ++round) {
        const at::Tensor tensor = at::full({20000 + 100 * round}, static_cast<double>(number), at::kFloat);
        wrong[static_cast<size_t>(number)] += tensor.ne(static_cast<double>(number)).sum().item<int64_t>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int64_t>(4, 0));
}

// A thread that is at work on the region when another forks does not exist in the child, where nobody would end its work.
TEST(KeptMemory, AChildMakesTensorsWhateverOtherThreadsDid) {
  if (keep_freed_memory() == MemoryKept::No) return;  // malloc's own business, and a sanitizer's
  std::atomic<bool> done = false;
  std::thread busy([&] {
    while (!done) static_cast<void>(at::empty({20000}, at::kFloat));
  });
  for (int round = 0; round < 200; ++round) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      alarm(5);  // ends it where it waits for ever
      static_cast<void>(at::empty({20000}, at::kFloat));
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "child " << round << " hung";
    if (!WIFEXITED(status)) break;
  }
  done = true;
  busy.join();
}

}  // namespace
}  // namespace switchyard
