// Experts divided over ranks, of one layer, against the experts of one process; and the weights of a divided decoder.

#include "switchyard/model/sharded_experts.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <functional>
#include <map>
#include <memory>

#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/core/routing.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard {
namespace {

constexpr double kNearShard = 1e-10;
constexpr int64_t kExperts = 8;
constexpr int64_t kWidth = 5;
constexpr int64_t kExpertWidth = 3;

at::Tensor normal(std::string_view name, c10::IntArrayRef sizes) {
  return Rng(11, name).normal_tensor(sizes, 1.0).to(at::kDouble);
}

at::Tensor leaf(const at::Tensor& values) { return values.detach().clone().set_requires_grad(true); }

struct ExpertsResult {
  at::Tensor out_TD;
  std::vector<at::Tensor> gradients;  // hidden, gate_up, down, weight
};

using ExpertsFunctionUnderTest =
    std::function<at::Tensor(const at::Tensor& hidden, const at::Tensor& gate_up, const at::Tensor& down, const ExpertSlots&)>;

ExpertsResult differentiate(const ExpertsFunctionUnderTest& function, const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                            const at::Tensor& down_EDF, const Routing& routing, const at::Tensor& direction_TD) {
  const std::vector<at::Tensor> leaves = {leaf(hidden_TD), leaf(gate_up_EFD), leaf(down_EDF), leaf(routing.weight_A)};
  ExpertsResult result;
  result.out_TD = function(leaves[0], leaves[1], leaves[2], {routing.token_A, leaves[3], routing.offsets_E});
  result.gradients = torch::autograd::grad({result.out_TD}, leaves, {direction_TD});
  return result;
}

/// Ranks with 7, 0, 1, ... tokens; experts 1 and 6 get nothing, expert 3 gets something from everybody.
Routing uneven_routing(int64_t rank, int64_t num_tokens) {
  at::Tensor ids_TK = at::empty({num_tokens, 2}, at::kLong);
  const std::array<int64_t, 5> others = {0, 2, 4, 5, 7};
  for (int64_t t = 0; t < num_tokens; ++t) {
    ids_TK[t][0] = 3;
    ids_TK[t][1] = others[static_cast<size_t>((3 * rank + t) % 5)];
  }
  if (num_tokens > 3) ids_TK[2].fill_(-1);  // padding
  const at::Tensor weights_TK = normal(join_text("weights", rank), {num_tokens, 2});
  return routing_from_top_k(ids_TK, weights_TK, kExperts);
}

void check_experts(Communicator& comm) {
  const std::array<int64_t, 4> tokens_R = {7, 0, 1, 6};
  const at::Tensor gate_up = normal("gate_up", {kExperts, 2 * kExpertWidth, kWidth});
  const at::Tensor down = normal("down", {kExperts, kWidth, kExpertWidth});
  const int64_t own = kExperts / comm.size();
  const int64_t first = own * comm.rank();
  at::Tensor d_gate_up = at::zeros_like(gate_up);
  at::Tensor d_down = at::zeros_like(down);
  ExpertsResult mine;
  for (int64_t rank = 0; rank < comm.size(); ++rank) {  // every rank knows what all should find
    const int64_t tokens = tokens_R[static_cast<size_t>(rank)];
    const ExpertsResult whole =
        differentiate(grouped_experts, normal(join_text("hidden", rank), {tokens, kWidth}), gate_up, down,
                      uneven_routing(rank, tokens), normal(join_text("direction", rank), {tokens, kWidth}));
    d_gate_up.add_(whole.gradients[1]);
    d_down.add_(whole.gradients[2]);
    if (rank == comm.rank()) mine = whole;
  }
  const int64_t tokens = tokens_R[static_cast<size_t>(comm.rank())];
  for (const auto& experts : {sharded_experts, sharded_experts_reference}) {
    const ExpertsFunctionUnderTest function = [&](const at::Tensor& hidden, const at::Tensor& gate_up_E, const at::Tensor& down_E,
                                                  const ExpertSlots& slots) {
      return experts(hidden, gate_up_E, down_E, slots, comm);
    };
    const ExpertsResult found = differentiate(
        function, normal(join_text("hidden", comm.rank()), {tokens, kWidth}), gate_up.narrow(0, first, own),
        down.narrow(0, first, own), uneven_routing(comm.rank(), tokens), normal(join_text("direction", comm.rank()), {tokens, kWidth}));
    EXPECT_TRUE(found.out_TD.allclose(mine.out_TD, 0.0, kNearShard));
    EXPECT_TRUE(found.gradients[0].allclose(mine.gradients[0], 0.0, kNearShard));
    EXPECT_TRUE(found.gradients[3].allclose(mine.gradients[3], 0.0, kNearShard));
    EXPECT_TRUE(found.gradients[1].allclose(d_gate_up.narrow(0, first, own), 0.0, kNearShard));
    EXPECT_TRUE(found.gradients[2].allclose(d_down.narrow(0, first, own), 0.0, kNearShard));
  }
}

TEST(ShardedExperts, AreTheExpertsOfOneProcess) {
  for (const int64_t num_ranks : {1, 2, 4}) run_ranks(num_ranks, check_experts);
}

// Wide enough for products by tiles, where the processor has them.
void check_experts_in_bfloat16(Communicator& comm) {
  constexpr int64_t kWide = 64, kInner = 32, kTokens = 90;
  const at::Tensor gate_up = normal("gate_up", {kExperts, 2 * kInner, kWide}).mul(0.2);
  const at::Tensor down = normal("down", {kExperts, kWide, kInner}).mul(0.2);
  const int64_t own = kExperts / comm.size(), first = own * comm.rank();
  at::Tensor d_gate_up = at::zeros_like(gate_up), d_down = at::zeros_like(down);
  ExpertsResult mine;
  for (int64_t rank = 0; rank < comm.size(); ++rank) {
    const ExpertsResult whole =
        differentiate(grouped_experts_reference, normal(join_text("hidden", rank), {kTokens, kWide}), gate_up, down,
                      uneven_routing(rank, kTokens), normal(join_text("direction", rank), {kTokens, kWide}));
    d_gate_up.add_(whole.gradients[1]);
    d_down.add_(whole.gradients[2]);
    if (rank == comm.rank()) mine = whole;
  }
  const auto halves = [](const at::Tensor& values) { return values.to(at::kBFloat16); };
  Routing routing = uneven_routing(comm.rank(), kTokens);
  routing.weight_A = routing.weight_A.to(at::kFloat);
  const ExpertsResult found = differentiate(
      [&](const auto& hidden, const auto& gate_up_E, const auto& down_E, const auto& slots) {
        return sharded_experts(hidden, gate_up_E, down_E, slots, comm);
      },
      halves(normal(join_text("hidden", comm.rank()), {kTokens, kWide})), halves(gate_up.narrow(0, first, own)),
      halves(down.narrow(0, first, own)), routing, halves(normal(join_text("direction", comm.rank()), {kTokens, kWide})));
  const auto expect_near = [](const at::Tensor& found_values, const at::Tensor& expected, const char* what) {
    const double error = found_values.to(at::kDouble).sub(expected).abs().max().item<double>();
    EXPECT_LT(error, 0.02 * expected.abs().max().item<double>()) << what;
  };
  expect_near(found.out_TD, mine.out_TD, "out");
  expect_near(found.gradients[0], mine.gradients[0], "d_hidden");
  expect_near(found.gradients[1], d_gate_up.narrow(0, first, own), "d_gate_up");
  expect_near(found.gradients[2], d_down.narrow(0, first, own), "d_down");
  expect_near(found.gradients[3], mine.gradients[3], "d_weight");
}

TEST(ShardedExperts, AreNearInBfloat16) {
  for (const int64_t num_ranks : {1, 2, 4}) run_ranks(num_ranks, check_experts_in_bfloat16);
}

struct DoneWork final : Work {
  bool ready() override { return true; }
  void wait() override {}
};

/// Hands collectives on and counts the bytes that leave this rank in exchanges.
class CountingCommunicator final : public Communicator {
 public:
  explicit CountingCommunicator(Communicator& inner) : inner_(inner) {}
  [[nodiscard]] int64_t rank() const override { return inner_.rank(); }
  [[nodiscard]] int64_t size() const override { return inner_.size(); }
  int64_t bytes_sent = 0;

 protected:
  [[nodiscard]] std::unique_ptr<Work> start(Call call) override {
    if (call.header.operation == Operation::AllGather) {
      inner_.all_gather(call.send, call.receive);
      return std::make_unique<DoneWork>();
    }
    for (int64_t peer = 0; peer < size(); ++peer) {
      if (peer != rank()) bytes_sent += call.header.send_bytes_R[static_cast<size_t>(peer)];
    }
    inner_.all_to_all(call.send, call.header.send_bytes_R, call.receive, call.header.receive_bytes_R);
    return std::make_unique<DoneWork>();
  }
  [[nodiscard]] std::unique_ptr<Communicator> make_part(const std::vector<int64_t>&, int64_t) override { return nullptr; }

 private:
  Communicator& inner_;
};

TEST(ShardedExperts, SendATokenOnceToARankThatHoldsSeveralOfItsExperts) {
  run_ranks(2, [](Communicator& comm) {
    constexpr int64_t kTokens = 3;
    const int64_t others_first = 4 * (1 - comm.rank());
    at::Tensor ids_TK = at::empty({kTokens, 2}, at::kLong);
    for (int64_t t = 0; t < kTokens; ++t) {
      ids_TK[t][0] = others_first + t % 2;
      ids_TK[t][1] = others_first + 3;
    }
    const Routing routing = routing_from_top_k(ids_TK, normal("weights", {kTokens, 2}), kExperts);
    CountingCommunicator counting(comm);
    (void)sharded_experts(normal("hidden", {kTokens, kWidth}), normal("gate_up", {4, 2 * kExpertWidth, kWidth}),
                          normal("down", {4, kWidth, kExpertWidth}), {routing.token_A, routing.weight_A, routing.offsets_E}, counting);
    constexpr int64_t kRows = kTokens * kWidth * 8;    // double
    constexpr int64_t kNotes = 2 * kTokens * (8 + 8);  // of each slot its token's row and its weight
    EXPECT_EQ(counting.bytes_sent, kRows + kNotes + kRows);
  });
}

TEST(ShardedExperts, RefuseOffsetsOfAnotherNumberOfExperts) {
  run_ranks(2, [](Communicator& comm) {
    const Routing routing = uneven_routing(0, 3);
    EXPECT_THROW((void)sharded_experts(normal("h", {3, kWidth}), normal("g", {3, 2 * kExpertWidth, kWidth}),
                                       normal("d", {3, kWidth, kExpertWidth}),
                                       {routing.token_A, routing.weight_A, routing.offsets_E}, comm),
                 ShapeError);
  });
}

// As kernels/experts_test.cpp has it; no rank sends anything before it has looked.
TEST(ShardedExperts, RejectSlotsThatDoNotFit) {
  run_ranks(2, [](Communicator& comm) {
    const at::Tensor hidden = normal("h", {2, kWidth});
    const at::Tensor gate_up = normal("g", {1, 2 * kExpertWidth, kWidth}), down = normal("d", {1, kWidth, kExpertWidth});
    const at::Tensor tokens = at::tensor({0, 1}, at::kLong), offsets = at::tensor({0, 1, 2}, at::kLong);
    const at::Tensor weights = normal("w", {2});
    for (const auto& function : {&sharded_experts, &sharded_experts_reference}) {
      const auto run = [&](const ExpertSlots& slots) { (void)function(hidden, gate_up, down, slots, comm); };
      EXPECT_NO_THROW(run({tokens, weights, offsets}));
      EXPECT_THROW(run({tokens, weights, at::tensor({0, 2}, at::kLong)}), ShapeError);
      EXPECT_THROW(run({tokens, weights, at::tensor({0, 2, 1}, at::kLong)}), ShapeError);
      EXPECT_THROW(run({tokens, weights, at::tensor({0, 1, 3}, at::kLong)}), ShapeError);
      EXPECT_THROW(run({tokens, weights, at::tensor({1, 1, 2}, at::kLong)}), ShapeError);
      EXPECT_THROW(run({tokens, weights.narrow(0, 0, 1), offsets}), ShapeError);
      EXPECT_THROW(run({tokens, weights.to(at::kFloat), offsets}), ShapeError);
      EXPECT_THROW(run({at::tensor({0, 2}, at::kLong), weights, offsets}), ShapeError);
    }
  });
}

TEST(ShardedExperts, RefuseSecondDerivatives) {
  run_ranks(2, [](Communicator& comm) {
    const Routing routing = uneven_routing(comm.rank(), 3);
    for (const auto& function : {&sharded_experts, &sharded_experts_reference}) {
      const std::vector<at::Tensor> hidden = {leaf(normal("hidden", {3, kWidth}))};
      const at::Tensor out = function(hidden[0], normal("gate_up", {4, 2 * kExpertWidth, kWidth}),
                                      normal("down", {4, kWidth, kExpertWidth}),
                                      {routing.token_A, routing.weight_A, routing.offsets_E}, comm);
      EXPECT_THROW((void)torch::autograd::grad({out.sum()}, hidden, {}, std::nullopt, /*create_graph=*/true), UsageError);
    }
  });
}

ModelConfig model_of_eight() {
  ModelConfig model;
  model.vocab_size = 40;
  model.width = 16;
  model.num_layers = 2;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_width = 8;
  model.num_experts = kExperts;
  model.expert_width = 16;
  return model;
}

TEST(ShardedModel, HoldsTheSameWeightsUnderTheSameNames) {
  const Decoder whole(model_of_eight(), ComputeType::Float32, 3, 7);
  std::map<std::string, at::Tensor> expected;
  for (const NamedTensor& weight : whole.named_weights()) expected[weight.name] = weight.tensor;
  run_ranks(4, [&](Communicator& comm) {
    const Decoder part(model_of_eight(), ComputeType::Float32, 3, 7, &comm);
    int64_t experts = 0;
    for (const NamedTensor& weight : part.named_weights()) {
      EXPECT_TRUE(weight.tensor.equal(expected.at(weight.name))) << weight.name;
      experts += weight.name.find(".experts.") != std::string::npos ? 1 : 0;
    }
    EXPECT_EQ(experts, 2 * 3 * kExperts / 4);
  });
  run_ranks(3, [&](Communicator& comm) {
    EXPECT_THROW((void)Decoder(model_of_eight(), ComputeType::Float32, 3, 7, &comm), ConfigError);
  });
}

}  // namespace
}  // namespace switchyard
