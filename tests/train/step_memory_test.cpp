// What a step holds at most, counted at the allocator.

#include <c10/core/CPUAllocator.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "switchyard/train/step.hpp"
#include "tests/train/fixtures.hpp"

namespace switchyard {
namespace {

// Stands before ATen's allocator while it lives, and knows the largest sum of bytes that were out at once.
class CountedMemory final : public c10::Allocator {
 public:
  CountedMemory() : behind_(*c10::GetCPUAllocator()) { c10::SetCPUAllocator(this, kPriority); }
  ~CountedMemory() override { c10::SetCPUAllocator(&behind_, kPriority); }
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;

  c10::DataPtr allocate(size_t size) override {
    auto* block = new Block{*this, behind_.allocate(size), static_cast<int64_t>(size)};
    held_ += block->size;
    most_ = std::max(most_.load(), held_.load());
    return {block->memory.get(), block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }

  [[nodiscard]] int64_t most() const { return most_; }

 private:
  static constexpr uint8_t kPriority = 200;
  struct Block {
    CountedMemory& owner;
    c10::DataPtr memory;
    int64_t size;
  };
  static void give_back(void* given) {
    auto* block = static_cast<Block*>(given);
    block->owner.held_ -= block->size;
    delete block;
  }

  c10::Allocator& behind_;
  std::atomic<int64_t> held_ = 0, most_ = 0;
};

constexpr int64_t kVocabulary = 16000;

int64_t most_in_a_step(const ExecutionConfig& execution, int64_t num_copies) {
  ModelConfig config = tiny_model();
  config.vocab_size = kVocabulary;
  std::vector<Batch> batches;
  for (int64_t copy = 0; copy < num_copies; ++copy) {
    for (Batch batch : make_micro_batches(1)) {
      batch.segment_micro_batch.assign(batch.segment_tokens.size(), std::ssize(batches));
      batches.push_back(std::move(batch));
    }
  }
  const CountedMemory counted;
  Decoder model(config, ComputeType::Float64, /*num_domains=*/3, 7);
  BalanceState state;
  static_cast<void>(run_step(model, {}, state, batches, execution, 7, 0, Alone().ranks));
  return counted.most();
}

// The forward of the head makes its gradient. Forwards that wait for the last one's counts must not each hold one.
TEST(StepMemory, ForwardsThatWaitHoldNoGradientOfTheHead) {
  constexpr int64_t kHeadGradient = kVocabulary * 16 * 8;
  for (const ExactOrder exact : {ExactOrder::Retain, ExactOrder::Recompute}) {
    ExecutionConfig execution;
    execution.exact = exact;
    execution.forward = ForwardPacking::Separate;
    const int64_t four = most_in_a_step(execution, 1), sixteen = most_in_a_step(execution, 4);
    EXPECT_GT(four, kHeadGradient);
    EXPECT_LT(sixteen - four, kHeadGradient) << "twelve more forwards wait, nine of them with targets";
  }
}

}  // namespace
}  // namespace switchyard
