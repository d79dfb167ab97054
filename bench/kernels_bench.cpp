// Each fused operation beside its plain ATen reference, forward and backward, bf16 (those with products also fp32), at the sizes of
// shape (ii). GFLOP/s and GB/s count what the operation needs at least: products, and each operand read or written once; `of peak`
// divides the larger of the two shares by what a large product of the type and a large copy reach in the same run.
// OMP_NUM_THREADS sets the threads.
#include <ATen/ops/embedding.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/accumulate.hpp"
#include "switchyard/kernels/adamw.hpp"
#include "switchyard/kernels/attention.hpp"
#include "switchyard/kernels/block_attention.hpp"
#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/cross_entropy.hpp"
#include "switchyard/kernels/embedding.hpp"
#include "switchyard/kernels/experts.hpp"
#include "switchyard/kernels/halves.hpp"
#include "switchyard/kernels/memory.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/rope.hpp"
#include "switchyard/kernels/router_scores.hpp"
#include "switchyard/kernels/swiglu.hpp"
#include "switchyard/kernels/tile_outer.hpp"

namespace {

using namespace switchyard;

constexpr int64_t kTokens = 4096, kWidth = 256, kExpertWidth = 256, kExperts = 16, kChosen = 2, kVocabulary = 8192;

at::Tensor leaf(c10::IntArrayRef sizes, at::ScalarType type = at::kBFloat16) {
  return Rng(1, "bench").normal_tensor(sizes, 0.1).to(type).set_requires_grad(true);
}

struct Work {
  double flops, bytes;
};

double bytes_of(at::ScalarType type) { return static_cast<double>(c10::elementSize(type)); }

// Per second of wall time: the best of some repeats.
Work measure_limits(at::ScalarType type) {
  const auto best = [](const auto& run) {
    constexpr double kPatience = 2.0;  // seconds; a processor that cannot multiply bf16 takes half a minute for one product
    double seconds = 1e9, all = 0.0;
    for (int repeat = 0; repeat < 20 && all < kPatience; ++repeat) {
      const auto begin = std::chrono::steady_clock::now();
      run();
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      seconds = std::min(seconds, took);
      all += took;
    }
    return seconds;
  };
  constexpr int64_t kSide = 2048;
  const at::Tensor square = Rng(1, "bench").normal_tensor({kSide, kSide}, 1.0).to(type);
  at::Tensor product = at::zeros_like(square);
  const double product_seconds = best([&] { at::mm_out(product, square, square); });
  const at::Tensor from = at::ones({int64_t{1} << 26}, at::kFloat);
  at::Tensor to = at::zeros_like(from);
  const double copy_seconds = best([&] { to.copy_(from); });
  return {2.0 * kSide * kSide * kSide / product_seconds, 8.0 * static_cast<double>(from.numel()) / copy_seconds};
}

void add(const std::string& name, const Work& work, const std::function<void()>& run, at::ScalarType type = at::kBFloat16) {
  static const Work limits_bf16 = measure_limits(at::kBFloat16), limits_f32 = measure_limits(at::kFloat);
  const Work limits = type == at::kFloat ? limits_f32 : limits_bf16;
  const std::string full_name = type == at::kFloat ? name + "/float32" : name;
  benchmark::RegisterBenchmark(full_name.c_str(), [=](benchmark::State& state) {
    for (int warm_up = 0; warm_up < 3; ++warm_up) run();  // until all memory that it takes has been touched
    for (auto _ : state) run();
    const double share = std::max(work.flops / limits.flops, work.bytes / limits.bytes);
    state.counters["of peak"] = benchmark::Counter(share * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
    const auto rate = [&](double amount) {
      return benchmark::Counter(amount * 1e-9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
    };
    state.counters["GFLOP/s"] = rate(work.flops);
    state.counters["GB/s"] = rate(work.bytes);
  })->Unit(benchmark::kMillisecond)->UseRealTime();
}

void add_norm() {
  const at::Tensor x = leaf({kTokens, kWidth}), weight = leaf({kWidth}, at::kFloat), direction = at::ones_like(x);
  const Work work{0.0, 2.0 * 5.0 * kTokens * kWidth};
  add("rms_norm/ours", work, [=] { rms_norm(x, weight, 1e-6).backward(direction); });
  add("rms_norm/aten", work, [=] { rms_norm_reference(x, weight, 1e-6).backward(direction); });
}

void add_residual_norm() {
  const at::Tensor x = leaf({kTokens, kWidth}), branch = leaf({kTokens, kWidth}), weight = leaf({kWidth}, at::kFloat);
  const at::Tensor direction = at::ones_like(x);
  // Two read and two written; then three read (x, both gradients) and one written.
  const Work work{0.0, 2.0 * 8.0 * kTokens * kWidth};
  const auto run = [=](const auto& function) {
    const auto result = function(x, branch, weight, 1e-6);
    result.normed_TD.backward(direction);
  };
  add("residual_rms_norm/ours", work, [=] { run(residual_rms_norm); });
  add("residual_rms_norm/aten", work, [=] {
    run([](const at::Tensor& a, const at::Tensor& b, const at::Tensor& norm_weight, double epsilon) {
      const at::Tensor hidden = a.add(b);
      return ResidualNorm{hidden, rms_norm_reference(hidden, norm_weight, epsilon)};
    });
  });
}

constexpr HeadShape kHeads{/*batch=*/8, /*positions=*/512, /*kv_heads=*/4, /*group=*/2, /*head_width=*/32};

void add_rope() {
  const at::Tensor qkv = leaf({kTokens, kHeads.qkv_width()}), query_weight = leaf({kHeads.head_width}, at::kFloat);
  const at::Tensor key_weight = leaf({kHeads.head_width}, at::kFloat);
  const RopeTable table = make_rope_table(kHeads.positions, kHeads.head_width, 1e4, at::kFloat);
  const Work work{0.0, 2.0 * 5.0 * static_cast<double>(kTokens * kHeads.qkv_width())};
  const auto run = [=](const auto& function) {
    const AttentionHeads heads = function(qkv, query_weight, key_weight, table, kHeads, 1e-6, 0.17);
    heads.query_BJSIW.sum().add(heads.key_BJSW.sum()).add(heads.value_BJSW.sum()).backward();
  };
  add("split_norm_rotate/ours", work, [=] { run(split_norm_rotate); });
  add("split_norm_rotate/aten", work, [=] { run(split_norm_rotate_reference); });
}

void add_attention(at::ScalarType type) {
  const auto [batch, positions, kv_heads, group, width] = kHeads;
  const AttentionHeads heads = {leaf({batch, kv_heads, positions, group, width}, type),
                                leaf({batch, kv_heads, positions, width}, type), leaf({batch, kv_heads, positions, width}, type)};
  const at::Tensor direction = leaf({kTokens, kHeads.query_width()}, type).detach();
  // Two products forward and four backward over the causal half; seven with the scores made again.
  const double pairs = 0.5 * static_cast<double>(positions * (positions + 1) * batch * kv_heads * group);
  const Work work{6.0 * 2.0 * static_cast<double>(width) * pairs,
                  bytes_of(type) * 5.0 * static_cast<double>(kTokens * kHeads.qkv_width())};
  add("causal_attention/tiles", work, [=] { causal_attention(heads).backward(direction); }, type);
  add("causal_attention/blocks", work, [=] { block_attention(heads).backward(direction); }, type);
  add("causal_attention/aten", work, [=] { causal_attention_reference(heads).backward(direction); }, type);
}

void add_accumulate() {
  constexpr int64_t kNumbers = 1 << 22;
  const at::Tensor sum = at::zeros({kNumbers}, at::kFloat), values = at::ones({kNumbers}, at::kBFloat16);
  const Work work{0.0, 10.0 * kNumbers};
  add("accumulate/ours", work, [=] { accumulate(sum, values); });
  add("accumulate/aten", work, [=] { sum.add_(values); });
}

void add_swiglu() {
  const at::Tensor gate_up = leaf({kTokens * kChosen, 2 * kExpertWidth});
  const at::Tensor direction = at::ones({kTokens * kChosen, kExpertWidth}, at::kBFloat16);
  const Work work{0.0, 2.0 * 8.0 * kTokens * kChosen * kExpertWidth};
  add("swiglu/ours", work, [=] { swiglu(gate_up).backward(direction); });
  add("swiglu/aten", work, [=] { swiglu_reference(gate_up).backward(direction); });
}

void add_head(at::ScalarType type) {
  const at::Tensor hidden = leaf({kTokens, kWidth}, type), head = leaf({kVocabulary, kWidth}, type);
  const at::Tensor targets = at::full({kTokens}, 7, at::kLong);
  const Work work{6.0 * kTokens * kWidth * kVocabulary, 2.0 * bytes_of(type) * (kTokens + kVocabulary) * kWidth};
  add("linear_cross_entropy/ours", work, [=] { linear_cross_entropy(hidden, head, targets, -100).backward(); }, type);
  add("linear_cross_entropy/aten", work, [=] { linear_cross_entropy_reference(hidden, head, targets, -100).backward(); }, type);
}

using Sizes = std::array<int64_t, kExperts>;

// Groups of somewhat unequal size, as a balanced router makes them.
constexpr Sizes kBalanced = [] {
  Sizes sizes{};
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    sizes[static_cast<size_t>(expert)] = kTokens * kChosen / kExperts + (expert % 2 == 0 ? 13 * expert : -13 * (expert - 1));
  }
  return sizes;
}();
// A domain's held-out tokens at the end of the demo (optimizer_batch, seed 0; one of 32 domains and layers), brought to 8192 slots.
constexpr Sizes kOneDomain = {29, 336, 740, 390, 240, 21, 9, 964, 390, 2565, 38, 254, 2004, 7, 92, 113};

constexpr Sizes kFew = {32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32, 32};

ExpertSlots some_slots(const Sizes& sizes) {
  std::vector<int64_t> tokens, offsets = {0};
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    for (int64_t i = 0; i < sizes[static_cast<size_t>(expert)]; ++i) tokens.push_back((i * 7 + expert) % kTokens);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const auto tensor = [](const std::vector<int64_t>& values) {
    at::Tensor result = at::zeros({static_cast<int64_t>(values.size())}, at::kLong);
    std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
    return result;
  };
  return {tensor(tokens), at::full({static_cast<int64_t>(tokens.size())}, 0.5, at::kFloat), tensor(offsets)};
}

struct ExpertSizes {
  int64_t tokens, width, expert_width;
};

void add_experts(const std::string& name, const ExpertSizes& sizes, const ExpertSlots& slots, at::ScalarType type) {
  const at::Tensor hidden = leaf({sizes.tokens, sizes.width}, type), gate_up = leaf({kExperts, 2 * sizes.expert_width, sizes.width}, type);
  const at::Tensor down = leaf({kExperts, sizes.width, sizes.expert_width}, type), direction = at::ones_like(hidden);
  const auto num_slots = static_cast<double>(slots.token_A.numel());
  const auto numbers = static_cast<double>(gate_up.numel() + down.numel() + 2 * hidden.numel());
  const Work work{18.0 * num_slots * static_cast<double>(sizes.width * sizes.expert_width), 2.0 * bytes_of(type) * numbers};
  add("grouped_experts/" + name + "ours", work, [=] { grouped_experts(hidden, gate_up, down, slots).backward(direction); }, type);
  add("grouped_experts/" + name + "aten", work, [=] { grouped_experts_reference(hidden, gate_up, down, slots).backward(direction); }, type);
}

// Of as many experts as (ii) and (iv) have.
void add_router(int64_t num_experts) {
  const std::string name = "E" + std::to_string(num_experts) + "/";
  const at::Tensor hidden = leaf({kTokens, kWidth}), weight = leaf({num_experts, kWidth}, at::kFloat);
  const at::Tensor direction = at::ones({kTokens, num_experts}, at::kFloat);
  const Work work{6.0 * kTokens * kWidth * static_cast<double>(num_experts), 2.0 * kTokens * (2.0 * kWidth + 4.0 * static_cast<double>(num_experts))};
  add("router_scores/" + name + "ours", work, [=] { router_scores(hidden, weight).backward(direction); });
  add("router_scores/" + name + "aten", work, [=] { router_scores_reference(hidden, weight).backward(direction); });
  const at::Tensor scores = leaf({kTokens, num_experts}, at::kFloat).detach();
  const Work reading{0.0, 4.0 * kTokens * static_cast<double>(num_experts)};
  add("largest_ids/" + name + "ours", reading, [=] { (void)largest_ids(scores, kChosen); });
  add("largest_ids/" + name + "aten", reading, [=] { (void)at::topk(scores, kChosen, -1); });
}

// Tokens to their slots and back, as divided experts send them.
void add_rows() {
  const at::Tensor hidden = leaf({kTokens, kWidth}).detach();
  const ExpertSlots slots = some_slots(kBalanced);
  const int64_t num_slots = slots.token_A.numel();
  const at::Tensor rows = leaf({num_slots, kWidth}).detach();
  const auto numbers = static_cast<double>(num_slots * kWidth);
  add("gather_rows/ours", {0.0, 4.0 * numbers}, [=] { (void)gather_rows(hidden, slots.token_A); });
  add("gather_rows/aten", {0.0, 4.0 * numbers}, [=] { (void)hidden.index_select(0, slots.token_A); });
  const Work work{0.0, 2.0 * (numbers + kTokens * kWidth)};
  add("combine_rows/ours", work, [=] { (void)combine_rows(rows, slots.weight_A, slots.token_A, kTokens); });
  add("combine_rows/aten", work, [=] {
    const at::Tensor sum = at::zeros({kTokens, kWidth}, at::kFloat);
    (void)sum.index_add_(0, slots.token_A, rows.to(at::kFloat).mul_(slots.weight_A.unsqueeze(1))).to(at::kBFloat16);
  });
}

void add_embedding() {
  const at::Tensor table = leaf({kVocabulary, kWidth}, at::kFloat);
  at::Tensor ids = at::zeros({kTokens}, at::kLong);
  for (int64_t i = 0; i < kTokens; ++i) ids.mutable_data_ptr<int64_t>()[i] = i * i % 997;  // some often, most never
  const at::Tensor direction = at::ones({kTokens, kWidth}, at::kBFloat16);
  const Work work{0.0, 4.0 * kWidth * (kVocabulary + 2.0 * kTokens)};
  add("embed/ours", work, [=] { embed(table, ids, at::kBFloat16).backward(direction); });
  add("embed/aten", work, [=] { at::embedding(table, ids).to(at::kBFloat16).backward(direction); });
}

// The head's gradient of one chunk of tokens, added to the sum in fp32.
void add_outer(at::ScalarType type) {
  constexpr int64_t kChunk = 512;
  const at::Tensor rows = leaf({kChunk, kWidth}, type).detach(), values = leaf({kChunk, kVocabulary}, type).detach();
  const double bytes = 8.0 * kWidth * kVocabulary + bytes_of(type) * kChunk * (kWidth + kVocabulary);
  const Work work{2.0 * kChunk * kWidth * kVocabulary, bytes};
  if (has_tile_outer(rows)) {
    const at::Tensor sum = make_outer_sum(kWidth, kVocabulary);
    add("add_tile_outer/ours", work, [=] { add_tile_outer(sum, rows, values, TileSum::Add); }, type);
  }
  const at::Tensor sum = at::zeros({kVocabulary, kWidth}, at::kFloat);
  add("add_tile_outer/aten", work, [=] { (void)sum.add_(at::mm(values.t(), rows)); }, type);
}

void add_halves() {
  constexpr int64_t kWeights = 1 << 22;
  const at::Tensor whole = leaf({kWeights}, at::kFloat).detach();
  const at::Tensor upper = at::zeros({kWeights}, at::kBFloat16), lower = at::zeros({kWeights}, at::kShort);
  const Work work{0.0, 8.0 * kWeights};
  add("split_halves/ours", work, [=] { split_halves(whole, upper, lower); });
  add("split_halves/aten", work, [=] { split_halves_reference(whole, upper, lower); });
  add("joined_halves/ours", work, [=] { (void)joined_halves(upper, lower); });
  add("joined_halves/aten", work, [=] { (void)joined_halves_reference(upper, lower); });
}

void add_sum_of_squares() {
  const at::Tensor values = leaf({1 << 22}).detach();
  const Work work{0.0, 2.0 * static_cast<double>(values.numel())};
  add("sum_of_squares/ours", work, [=] { (void)sum_of_squares({values}); });
  add("sum_of_squares/aten", work, [=] { (void)values.to(at::kFloat).square().sum(); });
}

void add_adamw() {
  constexpr int64_t kWeights = 1 << 22;
  const auto zeros = [](at::ScalarType type) { return at::zeros({kWeights}, type); };
  const at::Tensor gradient = at::full({kWeights}, 0.1, at::kBFloat16);
  const AdamWTensors tensors = {zeros(at::kBFloat16), zeros(at::kShort), zeros(at::kFloat), zeros(at::kFloat), {gradient}};
  const AdamWTensors halves = {zeros(at::kBFloat16), zeros(at::kShort), zeros(at::kBFloat16), zeros(at::kBFloat16), {gradient}};
  AdamWTensors of_two_ranks = tensors;
  of_two_ranks.gradient_parts.push_back(gradient.clone());
  AdamWFactors factors;
  factors.beta1 = 0.9;
  factors.beta2 = 0.95;
  factors.rate = 1e-6;
  factors.epsilon = 1e-8;
  const Work work{0.0, 26.0 * kWeights};
  add("adamw_update/ours", work, [=] { adamw_update(tensors, factors); });
  add("adamw_update/bf16 moments", {0.0, 18.0 * kWeights}, [=] { adamw_update(halves, factors); });
  add("adamw_update/two parts", {0.0, 28.0 * kWeights}, [=] { adamw_update(of_two_ranks, factors); });
  add("adamw_update/aten", work, [=] { adamw_update_reference(tensors, factors); });
}

}  // namespace

int main(int count, char** values) {
  keep_freed_memory();
  benchmark::Initialize(&count, values);
  if (benchmark::ReportUnrecognizedArguments(count, values)) return 2;
  add_norm();
  add_residual_norm();
  add_rope();
  add_accumulate();
  add_swiglu();
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    add_attention(type);
    add_head(type);
    add_experts("", {kTokens, kWidth, kExpertWidth}, some_slots(kBalanced), type);
    add_experts("one_domain_", {kTokens, kWidth, kExpertWidth}, some_slots(kOneDomain), type);
    add_experts("large_", {256, 2048, 768}, some_slots(kFew), type);  // an expert's weights are larger than the cache
    add_outer(type);
  }
  for (const int64_t num_experts : {kExperts, int64_t{128}}) add_router(num_experts);
  add_rows();
  add_embedding();
  add_halves();
  add_sum_of_squares();
  add_adamw();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
