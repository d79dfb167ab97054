// What balancing costs in a step: the calls themselves, timed without a model around them, because half a percent drowns in the
// noise of whole steps.
//   balance_bench                              1 and 2 thread ranks
//   mpirun -n 2 balance_bench                  2 processes
// A line a case: the calls of forward and backward of a step of M = 8 micro-batches of 512 tokens on each rank, median over
// rounds of the slowest rank, in microseconds; and counting alone with the bytes it reads a second. OMP_NUM_THREADS=1 is meant.
// An identity in place of the probabilities' own graph: its backward is what a step without balancing would do, and is taken off.
#include <ATen/ops/arange.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "switchyard/balance/statistics.hpp"
#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/rng.hpp"

namespace {

using namespace switchyard;
using Clock = std::chrono::steady_clock;

constexpr int64_t kMicroBatches = 8;
constexpr int64_t kTokens = 512;
constexpr int64_t kRounds = 15;

struct Case {
  int64_t num_experts = 16;
  int64_t num_layers = 4;
  int64_t num_chosen = 2;
  [[nodiscard]] BalanceShape shape() const { return {.num_layers = num_layers, .num_experts = num_experts, .num_chosen = num_chosen}; }
};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

double median(std::vector<double> values) {
  std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2);
  return values[values.size() / 2];
}

Routing some_routing(const Case& sizes, int64_t num_tokens, uint64_t seed) {
  Rng rng(seed, "bench");
  const at::Tensor logits_TE = rng.normal_tensor({num_tokens, sizes.num_experts}, 1.0).set_requires_grad(true);
  const at::Tensor probs_TE = at::softmax(logits_TE, -1);
  const at::Tensor ids_TK = std::get<1>(at::topk(logits_TE.detach(), sizes.num_chosen, -1));
  Routing routing = routing_from_top_k(ids_TK, probs_TE.gather(1, ids_TK), sizes.num_experts);
  routing.logits_TE = logits_TE;
  routing.probs_TE = probs_TE;
  return routing;
}

StepPlan plan_of_step() {
  StepPlan plan{.num_micro_batches = kMicroBatches};
  plan.forward_begin = {0};
  for (int64_t m = 0; m < kMicroBatches; ++m) {
    plan.segment_tokens.push_back(kTokens);
    plan.segment_micro_batch.push_back(m);
    plan.forward_begin.push_back(m + 1);
  }
  return plan;
}

// Seconds of all calls of one step.
double time_step(const Case& sizes, const BalanceConfig& config, const std::vector<Routing>& routings, BalanceState& state,
                 Communicator& comm) {
  const at::Tensor segment_T = at::zeros({kTokens}, at::kLong);
  const auto begin = Clock::now();
  StepBalance balance(config, sizes.shape(), plan_of_step(), state, {comm});
  std::vector<at::Tensor> through;
  for (int64_t forward = 0; forward < kMicroBatches; ++forward) {
    for (int64_t layer = 0; layer < sizes.num_layers; ++layer) {
      const Routing& routing = routings[static_cast<size_t>(layer)];
      through.push_back(balance.through_probs(forward, layer, routing.probs_TE, segment_T));
      balance.record(forward, layer, routing, segment_T);
    }
    balance.close_forward(forward);
    balance.await_forward(forward);
  }
  balance.close_counting();
  const std::vector<at::Tensor> grads(through.size(), at::zeros({kTokens, sizes.num_experts}, at::kFloat));
  std::vector<at::Tensor> leaves;
  for (const Routing& routing : routings) leaves.push_back(routing.probs_TE);
  static_cast<void>(torch::autograd::grad(through, leaves, grads, /*retain_graph=*/true));
  balance.finish(state);
  return seconds_since(begin);
}

// Backward of the same graph without a loss: what the calls above would cost a model anyway.
double time_plain(const Case& sizes, const std::vector<Routing>& routings) {
  const auto begin = Clock::now();
  std::vector<at::Tensor> through;
  std::vector<at::Tensor> leaves;
  for (int64_t forward = 0; forward < kMicroBatches; ++forward) {
    for (const Routing& routing : routings) through.push_back(routing.probs_TE.view_as(routing.probs_TE));
  }
  for (const Routing& routing : routings) leaves.push_back(routing.probs_TE);
  const std::vector<at::Tensor> grads(through.size(), at::zeros({kTokens, sizes.num_experts}, at::kFloat));
  static_cast<void>(torch::autograd::grad(through, leaves, grads, /*retain_graph=*/true));
  return seconds_since(begin);
}

void bench_case(const Case& sizes, const std::string& scope_text, Communicator& comm) {
  BalanceConfig config{.coefficient = 0.01};
  parse(scope_text, config.scope);
  std::vector<Routing> routings;
  for (int64_t layer = 0; layer < sizes.num_layers; ++layer) {
    routings.push_back(some_routing(sizes, kTokens, static_cast<uint64_t>(comm.rank() * 100 + layer)));
  }
  BalanceState state;
  std::vector<double> times;
  std::vector<double> all_R(static_cast<size_t>(comm.size()));
  for (int64_t round = 0; round < kRounds + 2; ++round) {
    comm.barrier();
    const double plain = time_plain(sizes, routings);
    const std::vector<double> mine = {time_step(sizes, config, routings, state, comm) - plain};
    comm.all_gather(mine, all_R);
    if (round >= 2) times.push_back(std::ranges::max(all_R));
  }
  if (comm.rank() == 0) {
    std::printf("ranks %ld  E %4ld  L %3ld  K %ld  %-16s %10.0f us a step\n", static_cast<long>(comm.size()),
                static_cast<long>(sizes.num_experts), static_cast<long>(sizes.num_layers), static_cast<long>(sizes.num_chosen),
                scope_text.c_str(), median(times) * 1e6);
  }
}

void bench_all(Communicator& comm) {
  for (const Case& sizes : {Case{16, 4, 2}, Case{64, 4, 4}, Case{512, 4, 8}, Case{16, 48, 2}, Case{128, 48, 8}}) {
    for (const char* scope : {"micro_batch", "ranks", "prefix", "optimizer_batch", "previous_step", "sequences(4)"}) {
      bench_case(sizes, scope, comm);
    }
  }
}

// Packed documents whose tokens two ranks share: every document is a group of its own that both must add up.
void bench_documents(Communicator& comm) {
  constexpr int64_t kDocumentTokens = 4;
  const Case sizes{64, 8, 2};
  for (const int64_t documents : {1024, 4096, 16384}) {
    StepPlan plan;
    plan.segment_tokens.assign(static_cast<size_t>(documents), kDocumentTokens);
    plan.segment_micro_batch.assign(static_cast<size_t>(documents), 0);
    plan.forward_begin = {0, documents};
    const at::Tensor segment_T = at::arange(documents, at::kLong).repeat_interleave(kDocumentTokens);
    const Routing routing = some_routing(sizes, documents * kDocumentTokens, static_cast<uint64_t>(comm.rank()));
    comm.barrier();
    const auto begin = Clock::now();
    StepBalance balance({.scope = {.kind = ScopeKind::Sequence}}, sizes.shape(), plan, {}, {comm, {.data_rank = 0}});
    for (int64_t layer = 0; layer < sizes.num_layers; ++layer) {
      static_cast<void>(balance.through_probs(0, layer, routing.probs_TE, segment_T));
      balance.record(0, layer, routing, segment_T);
    }
    balance.close_forward(0);
    balance.close_counting();
    const double seconds = seconds_since(begin);
    if (comm.rank() == 0) std::printf("ranks that share %6ld documents  E 64  L 8  K 2  %.3f s\n", static_cast<long>(documents), seconds);
  }
}

void bench_counting() {
  for (const Case& sizes : {Case{16, 1, 2}, Case{128, 1, 8}, Case{512, 1, 8}}) {
    const Routing routing = some_routing(sizes, kTokens, 1);
    const at::Tensor segment_T = at::zeros({kTokens}, at::kLong);
    std::vector<double> times;
    for (int64_t round = 0; round < 200; ++round) {
      const auto begin = Clock::now();
      static_cast<void>(segment_statistics(routing, segment_T, 1, {}));
      times.push_back(seconds_since(begin));
    }
    const double bytes = static_cast<double>(kTokens * (sizes.num_experts * 4 + sizes.num_chosen * 16 + 8));
    std::printf("counting  E %4ld  K %ld  512 tokens  %8.1f us  %6.2f GB/s\n", static_cast<long>(sizes.num_experts),
                static_cast<long>(sizes.num_chosen), median(times) * 1e6, bytes / median(times) / 1e9);
  }
}

}  // namespace

int main() {
  try {
    if (started_by_mpi()) {
      MpiSession session;
      const std::unique_ptr<Communicator> world = session.world();
      bench_all(*world);
      if (world->size() > 1) bench_documents(*world);
      return 0;
    }
    bench_counting();
    bench_all(*make_solo_communicator());
    run_ranks(2, bench_all);
    run_ranks(2, bench_documents);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "balance_bench: %s\n", error.what());
    return 1;
  }
}
