// Forward and backward of the decoder without optimizer, and its kernels alone. Tokens per second of wall time.
// OMP_NUM_THREADS sets the threads. Example: OMP_NUM_THREADS=2 build/release/bench/decoder_bench
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <benchmark/benchmark.h>

#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/attention.hpp"
#include "switchyard/kernels/memory.hpp"
#include "switchyard/model/decoder.hpp"

namespace {

using namespace switchyard;

Batch random_batch(int64_t rows, int64_t positions, int64_t vocabulary) {
  Rng rng(1, "bench");
  Batch batch;
  batch.ids_BS = at::zeros({rows, positions}, at::kLong);
  for (int64_t i = 0; i < rows * positions; ++i) {
    batch.ids_BS.mutable_data_ptr<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(vocabulary)));
  }
  batch.targets_BS = batch.ids_BS.roll(-1, 1);
  batch.segment_T = at::arange(rows, at::kLong).repeat_interleave(positions);
  batch.domain_T = at::zeros({rows * positions}, at::kLong);
  batch.document_T = batch.segment_T;
  batch.segment_tokens.assign(static_cast<size_t>(rows), positions);
  batch.segment_micro_batch.assign(static_cast<size_t>(rows), 0);
  return batch;
}

struct Shape {
  int64_t width, expert_width, positions, rows;
};

void run_decoder(benchmark::State& state, const Shape& shape, ComputeType type) {
  ModelConfig config;
  config.width = shape.width;
  config.expert_width = shape.expert_width;
  config.num_heads = shape.width / config.head_width;
  config.num_kv_heads = config.num_heads / 2;
  Decoder model(config, type, /*num_domains=*/1, /*seed=*/1);
  const Batch batch = random_batch(shape.rows, shape.positions, config.vocab_size);
  const at::Tensor targets_T = batch.targets_BS.reshape({-1});
  for (auto _ : state) {
    model.loss_sum(model.forward(batch, {}), targets_T).backward();
    model.collect_gradients();
    model.clear_gradients();
  }
  state.counters["tokens/s"] =
      benchmark::Counter(static_cast<double>(state.iterations() * targets_T.numel()), benchmark::Counter::kIsRate);
}

AttentionHeads random_heads(int64_t positions) {
  Rng rng(1, "bench");
  const auto make = [&](c10::IntArrayRef sizes) {
    return rng.normal_tensor(sizes, 1.0).to(at::kBFloat16).set_requires_grad(true);
  };
  return {make({8, 4, positions, 2, 32}), make({8, 4, positions, 32}), make({8, 4, positions, 32})};
}

void run_attention(benchmark::State& state) {
  const AttentionHeads heads = random_heads(state.range(0));
  const at::Tensor direction = at::ones({8 * state.range(0), 8 * 32}, at::kBFloat16);
  for (auto _ : state) causal_attention(heads).backward(direction);
}

void run_attention_of_aten(benchmark::State& state) {
  const AttentionHeads heads = random_heads(state.range(0));
  const at::Tensor direction = at::ones({8, 8, state.range(0), 32}, at::kBFloat16);
  for (auto _ : state) {
    const at::Tensor query = heads.query_BJSIW.transpose(2, 3).reshape({8, 8, state.range(0), 32});
    at::scaled_dot_product_attention(query, heads.key_BJSW.repeat_interleave(2, 1), heads.value_BJSW.repeat_interleave(2, 1),
                                     {}, 0.0, /*is_causal=*/true, /*scale=*/1.0)
        .backward(direction);
  }
}

void register_all() {
  const auto add = [](const char* name, const Shape& shape, ComputeType type) {
    benchmark::RegisterBenchmark(name, [=](benchmark::State& state) { run_decoder(state, shape, type); })
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime()
        ->MinTime(2.0);
  };
  constexpr Shape kMedium = {256, 256, 512, 8};
  constexpr Shape kSmall = {128, 128, 256, 8};
  add("decoder/D256_F256_S512_B8/bfloat16", kMedium, ComputeType::BFloat16);
  add("decoder/D256_F256_S512_B8/float32", kMedium, ComputeType::Float32);
  add("decoder/D128_F128_S256_B8/bfloat16", kSmall, ComputeType::BFloat16);
  add("decoder/D128_F128_S256_B8/float32", kSmall, ComputeType::Float32);
  for (const int64_t positions : {256, 512}) {
    const auto add_attention = [=](const char* name, void (*run)(benchmark::State&)) {
      benchmark::RegisterBenchmark(name, run)->Arg(positions)->Unit(benchmark::kMillisecond)->UseRealTime();
    };
    add_attention("attention/ours", run_attention);
    add_attention("attention/aten", run_attention_of_aten);
  }
}

}  // namespace

int main(int count, char** values) {
  keep_freed_memory();
  benchmark::Initialize(&count, values);
  if (benchmark::ReportUnrecognizedArguments(count, values)) return 2;
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
