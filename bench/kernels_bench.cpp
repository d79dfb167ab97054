// Each fused operation beside its plain ATen reference, bf16, at the sizes of shape (ii). GFLOP/s and GB/s count what the
// operation needs at least: products, and each operand read or written once. OMP_NUM_THREADS sets the threads.
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/adamw.hpp"
#include "switchyard/kernels/cross_entropy.hpp"
#include "switchyard/kernels/experts.hpp"
#include "switchyard/kernels/memory.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/swiglu.hpp"

namespace {

using namespace switchyard;

constexpr int64_t kTokens = 4096, kWidth = 256, kExpertWidth = 256, kExperts = 16, kChosen = 2, kVocabulary = 8192;

at::Tensor leaf(c10::IntArrayRef sizes, at::ScalarType type = at::kBFloat16) {
  return Rng(1, "bench").normal_tensor(sizes, 0.1).to(type).set_requires_grad(true);
}

struct Work {
  double flops, bytes;
};

void add(const char* name, const Work& work, const std::function<void()>& run) {
  benchmark::RegisterBenchmark(name, [=](benchmark::State& state) {
    run();
    for (auto _ : state) run();
    const auto rate = [&](double amount) {
      return benchmark::Counter(amount * 1e-9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
    };
    state.counters["GFLOP/s"] = rate(work.flops);
    state.counters["GB/s"] = rate(work.bytes);
  })->Unit(benchmark::kMillisecond)->MeasureProcessCPUTime();
}

void add_norm() {
  const at::Tensor x = leaf({kTokens, kWidth}), weight = leaf({kWidth}, at::kFloat), direction = at::ones_like(x);
  const Work work{0.0, 2.0 * 5.0 * kTokens * kWidth};
  add("rms_norm/ours", work, [=] { rms_norm(x, weight, 1e-6).backward(direction); });
  add("rms_norm/aten", work, [=] { rms_norm_reference(x, weight, 1e-6).backward(direction); });
}

void add_swiglu() {
  const at::Tensor gate_up = leaf({kTokens * kChosen, 2 * kExpertWidth});
  const at::Tensor direction = at::ones({kTokens * kChosen, kExpertWidth}, at::kBFloat16);
  const Work work{0.0, 2.0 * 8.0 * kTokens * kChosen * kExpertWidth};
  add("swiglu/ours", work, [=] { swiglu(gate_up).backward(direction); });
  add("swiglu/aten", work, [=] { swiglu_reference(gate_up).backward(direction); });
}

void add_head() {
  const at::Tensor hidden = leaf({kTokens, kWidth}), head = leaf({kVocabulary, kWidth});
  const at::Tensor targets = at::full({kTokens}, 7, at::kLong);
  const Work work{6.0 * kTokens * kWidth * kVocabulary, 4.0 * (kTokens + kVocabulary) * kWidth};
  add("linear_cross_entropy/ours", work, [=] { linear_cross_entropy(hidden, head, targets, -100).backward(); });
  add("linear_cross_entropy/aten", work, [=] { linear_cross_entropy_reference(hidden, head, targets, -100).backward(); });
}

// Groups of unequal size, as a router makes them.
ExpertSlots some_slots() {
  std::vector<int64_t> tokens, offsets = {0};
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    const int64_t size = kTokens * kChosen / kExperts + (expert % 2 == 0 ? 13 * expert : -13 * (expert - 1));
    for (int64_t i = 0; i < size; ++i) tokens.push_back((i * 7 + expert) % kTokens);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const auto tensor = [](const std::vector<int64_t>& values) {
    at::Tensor result = at::zeros({static_cast<int64_t>(values.size())}, at::kLong);
    std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
    return result;
  };
  return {tensor(tokens), at::full({static_cast<int64_t>(tokens.size())}, 0.5, at::kFloat), tensor(offsets)};
}

void add_experts() {
  const at::Tensor hidden = leaf({kTokens, kWidth}), gate_up = leaf({kExperts, 2 * kExpertWidth, kWidth});
  const at::Tensor down = leaf({kExperts, kWidth, kExpertWidth}), direction = at::ones_like(hidden);
  const ExpertSlots slots = some_slots();
  const auto num_slots = static_cast<double>(slots.token_A.numel());
  const auto numbers = static_cast<double>(gate_up.numel() + down.numel() + 2 * hidden.numel());
  const Work work{18.0 * num_slots * kWidth * kExpertWidth, 4.0 * numbers};
  add("grouped_experts/ours", work, [=] { grouped_experts(hidden, gate_up, down, slots).backward(direction); });
  add("grouped_experts/aten", work, [=] { grouped_experts_reference(hidden, gate_up, down, slots).backward(direction); });
}

void add_adamw() {
  constexpr int64_t kWeights = 1 << 22;
  const auto zeros = [](at::ScalarType type) { return at::zeros({kWeights}, type); };
  const at::Tensor gradient = at::full({kWeights}, 0.1, at::kBFloat16);
  const AdamWTensors tensors = {zeros(at::kFloat), gradient, zeros(at::kFloat), zeros(at::kFloat), zeros(at::kBFloat16)};
  AdamWFactors factors;
  factors.beta1 = 0.9;
  factors.beta2 = 0.95;
  factors.rate = 1e-6;
  factors.epsilon = 1e-8;
  const Work work{0.0, 28.0 * kWeights};
  add("adamw_update/ours", work, [=] { adamw_update(tensors, factors); });
  add("adamw_update/aten", work, [=] { adamw_update_reference(tensors, factors); });
}

}  // namespace

int main(int count, char** values) {
  keep_freed_memory();
  benchmark::Initialize(&count, values);
  if (benchmark::ReportUnrecognizedArguments(count, values)) return 2;
  add_norm();
  add_swiglu();
  add_head();
  add_experts();
  add_adamw();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
