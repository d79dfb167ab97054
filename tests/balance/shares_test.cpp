// Groups are declared by how tokens are sharded. The same step laid out over ranks as data, context, tensor and pipeline
// parallel must give the loss and the gradient of one process.

#include <ATen/ops/from_blob.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/topk.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard::shares {
namespace {

// Four sequences of 4, 6, 2 and 8 tokens in two micro-batches, one layer or two, 3 experts, 2 chosen.
constexpr int64_t kExperts = 3;
constexpr int64_t kLayers = 2;
const std::vector<int64_t>& lengths() {
  static const std::vector<int64_t> all = {4, 6, 2, 8};
  return all;
}

struct Token {
  int64_t sequence = 0;
  int64_t number = 0;  // in the step
};

at::Tensor int_tensor(std::vector<int64_t> values) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kLong).clone();
}

Routing softmax_routing(const at::Tensor& logits_TE, int64_t num_chosen) {
  const at::Tensor probs_TE = at::softmax(logits_TE, -1);
  const at::Tensor ids_TK = std::get<1>(at::topk(logits_TE, num_chosen, -1));
  Routing routing = routing_from_top_k(ids_TK, probs_TE.gather(1, ids_TK), kExperts);
  routing.probs_TE = probs_TE;
  routing.logits_TE = logits_TE;
  return routing;
}

// What a rank holds.
struct Part {
  std::vector<Token> tokens;
  std::vector<int64_t> sequences;  // in order
  RankShare share;
  int64_t first_layer = 0;
  int64_t num_layers = kLayers;
};

at::Tensor all_logits(int64_t layer) {
  Rng rng(static_cast<uint64_t>(layer), "logits");
  return rng.normal_tensor({20, kExperts}, 1.0).to(at::kDouble);
}

std::vector<Token> tokens_of(const std::vector<int64_t>& sequences, int64_t part, int64_t parts) {
  std::vector<Token> tokens;
  int64_t number = 0;
  for (int64_t sequence = 0; sequence < 4; ++sequence) {
    const int64_t length = lengths()[static_cast<size_t>(sequence)];
    const bool held = std::find(sequences.begin(), sequences.end(), sequence) != sequences.end();
    for (int64_t at = 0; at < length; ++at, ++number) {
      if (held && at * parts / length == part) tokens.push_back({sequence, number});
    }
  }
  return tokens;
}

struct Result {
  std::vector<std::vector<double>> coefficients;  // [L * 20] of [E], by token
  double loss = 0.0;
  int64_t slots = 0;
};

// Runs one rank; both micro-batches in forwards of their own. Sequences 0 and 1 are micro-batch 0.
void run_rank(const Part& part, const BalanceConfig& config, Communicator& comm, Result& result, std::mutex& guard) {
  StepPlan plan{.forward_begin = {0}, .num_micro_batches = 2};
  for (const int64_t micro_batch : {0, 1}) {
    for (const int64_t sequence : part.sequences) {
      if (sequence / 2 != micro_batch) continue;
      plan.segment_micro_batch.push_back(micro_batch);
      plan.segment_tokens.push_back(std::count_if(part.tokens.begin(), part.tokens.end(),
                                                  [&](const Token& token) { return token.sequence == sequence; }));
    }
    plan.forward_begin.push_back(static_cast<int64_t>(plan.segment_tokens.size()));
  }
  const BalanceShape shape{.num_layers = part.num_layers, .num_experts = kExperts, .num_chosen = 2, .total_layers = kLayers};
  StepBalance balance(config, shape, plan, {}, {comm, part.share});
  for (int64_t forward = 0; forward < 2; ++forward) {
    std::vector<int64_t> segments;
    std::vector<int64_t> numbers;
    for (const Token& token : part.tokens) {
      if (token.sequence / 2 != forward) continue;
      const auto found = std::find(part.sequences.begin(), part.sequences.end(), token.sequence);
      segments.push_back(found - part.sequences.begin() - plan.segments(forward).begin);
      numbers.push_back(token.number);
    }
    if (!plan.segments(forward).empty()) {
      const at::Tensor segment_T = int_tensor(segments);
      for (int64_t layer = 0; layer < part.num_layers; ++layer) {
        const at::Tensor logits_TE = all_logits(part.first_layer + layer).index_select(0, int_tensor(numbers));
        Routing routing = softmax_routing(logits_TE, 2);
        routing.probs_TE = balance.through_probs(forward, layer, routing.probs_TE, segment_T);
        balance.record(forward, layer, routing, segment_T);
      }
    }
    balance.close_forward(forward);
    balance.await_forward(forward);
  }
  balance.close_counting();
  const std::lock_guard lock(guard);
  if (part.share.replica == 0) result.loss += balance.values().weighted_loss / static_cast<double>(comm.size());
  if (comm.rank() == 0) result.slots = balance.step_counts_LE().sum().item<int64_t>();
  for (const Token& token : part.tokens) {
    const int64_t forward = token.sequence / 2;
    const auto found = std::find(part.sequences.begin(), part.sequences.end(), token.sequence);
    const int64_t segment = found - part.sequences.begin() - plan.segments(forward).begin;
    for (int64_t layer = 0; layer < part.num_layers; ++layer) {
      const at::Tensor row_E = balance.coefficients_SE(forward, layer).select(0, segment).contiguous();
      result.coefficients[static_cast<size_t>((part.first_layer + layer) * 20 + token.number)] = {
          row_E.const_data_ptr<double>(), row_E.const_data_ptr<double>() + kExperts};
    }
  }
}

Result run_layout(const std::vector<Part>& parts, const BalanceConfig& config) {
  Result result;
  result.coefficients.resize(kLayers * 20);
  std::mutex guard;
  run_ranks(static_cast<int64_t>(parts.size()), [&](Communicator& comm) {
    run_rank(parts[static_cast<size_t>(comm.rank())], config, comm, result, guard);
  });
  return result;
}

void expect_same(const Result& given, const Result& expected) {
  for (size_t row = 0; row < expected.coefficients.size(); ++row) {
    ASSERT_EQ(given.coefficients[row].size(), static_cast<size_t>(kExperts));
    for (size_t expert = 0; expert < kExperts; ++expert) {
      EXPECT_NEAR(given.coefficients[row][expert], expected.coefficients[row][expert], 1e-14) << "row " << row;
    }
  }
  EXPECT_EQ(given.slots, expected.slots);
}

const std::vector<int64_t> kAll = {0, 1, 2, 3};  // NOLINT(cert-err58-cpp): cannot throw in practice

class SharesTest : public testing::TestWithParam<Scope> {
 protected:
  [[nodiscard]] static BalanceConfig config() { return {.scope = GetParam(), .coefficient = 0.5}; }
  Result one_ = run_layout({{tokens_of(kAll, 0, 1), kAll, {}}}, config());
};

TEST_P(SharesTest, ContextParallelHoldsPartsOfEverySequence) {
  expect_same(run_layout({{tokens_of(kAll, 0, 2), kAll, {.data_rank = 0}}, {tokens_of(kAll, 1, 2), kAll, {.data_rank = 0}}},
                         config()),
              one_);
}

TEST_P(SharesTest, TensorParallelCopiesCountOnce) {
  const Result copies = run_layout(
      {{tokens_of(kAll, 0, 1), kAll, {.data_rank = 0}}, {tokens_of(kAll, 0, 1), kAll, {.data_rank = 0, .replica = 1}}}, config());
  expect_same(copies, one_);
  const Result copy_first = run_layout(
      {{tokens_of(kAll, 0, 1), kAll, {.data_rank = 0, .replica = 1}}, {tokens_of(kAll, 0, 1), kAll, {.data_rank = 0}}}, config());
  expect_same(copy_first, one_);
}

TEST_P(SharesTest, PipelineStagesHaveGroupsOfTheirOwn) {
  Result staged;
  staged.coefficients.resize(kLayers * 20);
  std::mutex guard;
  run_ranks(2, [&](Communicator& world) {
    const std::unique_ptr<Communicator> stage = world.split(world.rank(), 0);
    const Part part{tokens_of(kAll, 0, 1), kAll, {}, world.rank(), 1};
    run_rank(part, config(), *stage, staged, guard);
  });
  staged.slots *= kLayers;  // each stage counts its layers only
  expect_same(staged, one_);
  EXPECT_NEAR(staged.loss, one_.loss, 1e-12);
}

TEST_P(SharesTest, DataTimesContextTimesTensor) {
  // Data rank 0 holds sequences 0 and 2, data rank 1 the others; each in two parts, those of rank 0 twice: copies everywhere
  // would leave every fraction as it is.
  std::vector<Part> parts;
  for (const int64_t data : {0, 1}) {
    for (const int64_t part : {0, 1}) {
      for (int64_t copy = 0; copy < 2 - data; ++copy) {
        const std::vector<int64_t> held = {data, data + 2};
        parts.push_back({tokens_of(held, part, 2), held, {.data_rank = data, .replica = copy}});
      }
    }
  }
  std::vector<Part> plain = {{tokens_of({0, 2}, 0, 1), {0, 2}, {}}, {tokens_of({1, 3}, 0, 1), {1, 3}, {}}};
  expect_same(run_layout(parts, config()), run_layout(plain, config()));
}

INSTANTIATE_TEST_SUITE_P(Scopes, SharesTest,
                         testing::Values(Scope{.kind = ScopeKind::Sequence},
                                         Scope{.kind = ScopeKind::Sequences, .num_sequences = 2},
                                         Scope{.kind = ScopeKind::MicroBatch}, Scope{.kind = ScopeKind::Ranks},
                                         Scope{.kind = ScopeKind::Prefix}, Scope{.kind = ScopeKind::OptimizerBatch}));

}  // namespace
}  // namespace switchyard::shares
