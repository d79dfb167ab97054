// Balancing by offsets: the rules by hand, the whole step against single micro-batches, ranks against one process.

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "switchyard/balance/selection.hpp"
#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "toy_step.hpp"

namespace switchyard {
namespace {

at::Tensor counts_of(std::vector<int64_t> counts) {
  return at::from_blob(counts.data(), {1, static_cast<int64_t>(counts.size())}, at::kLong).clone();
}

std::vector<float> floats(const at::Tensor& row_LE) {
  const at::Tensor host = row_LE.contiguous();
  return {host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel()};
}

TEST(Bias, MovesByTheRateTowardsTheMeanLoad) {
  const at::Tensor bias_LE = at::zeros({1, 4}, at::kFloat);
  const at::Tensor counts_LE = counts_of({3, 1, 2, 2});
  EXPECT_THAT(floats(updated_bias(bias_LE, counts_LE, {.rule = SelectionRule::Bias, .rate = 0.5})),
              testing::ElementsAre(-0.5F, 0.5F, 0.0F, 0.0F));
  // Signs -1, -1, -1, +1: their mean is -1/2.
  EXPECT_THAT(floats(updated_bias(bias_LE, counts_of({3, 3, 3, 1}), {.rule = SelectionRule::BiasCentered, .rate = 0.5})),
              testing::ElementsAre(-0.25F, -0.25F, -0.25F, 0.75F));
}

// fp32 would lose the difference of one slot in 2^60.
TEST(Bias, ComparesIntegersExactly) {
  constexpr int64_t kMany = int64_t{1} << 60;
  const at::Tensor bias_LE = at::zeros({1, 2}, at::kFloat);
  EXPECT_THAT(floats(updated_bias(bias_LE, counts_of({kMany, kMany + 2}), {.rule = SelectionRule::Bias, .rate = 1.0})),
              testing::ElementsAre(1.0F, -1.0F));
}

TEST(ThresholdBins, InterpolateWithinABin) {
  const ThresholdBins bins{.low = 0.0, .high = 1000.0};  // bins of width 1
  std::vector<int64_t> counts(ThresholdBins::kBins + 2, 0);
  counts[static_cast<size_t>(bins.bin_of(500.5))] = 4;
  counts[static_cast<size_t>(bins.bin_of(900.0))] = 2;
  EXPECT_DOUBLE_EQ(threshold_of(bins, counts.data(), 2.0), 900.0);   // all of the upper bin
  EXPECT_DOUBLE_EQ(threshold_of(bins, counts.data(), 3.0), 500.75);  // a quarter into [500, 501) from above
  EXPECT_DOUBLE_EQ(threshold_of(bins, counts.data(), 6.0), 500.0);
  EXPECT_EQ(bins.bin_of(-5.0), 0);
  EXPECT_EQ(bins.bin_of(1000.0), ThresholdBins::kBins + 1);
  EXPECT_EQ(bins.bin_of(std::nan("")), 0);
}

constexpr int64_t kExperts = 16;
constexpr int64_t kChosen = 2;
constexpr int64_t kMicroBatches = 8;
constexpr int64_t kTokens = 256;  // of a micro-batch

// Fixed scores: a mean per domain and expert, a skew per expert, noise. One domain a micro-batch.
std::vector<at::Tensor> fixed_scores() {
  Rng rng(4, "scores");
  const at::Tensor skew_E = rng.normal_tensor({kExperts}, 0.7);
  std::vector<at::Tensor> scores;
  for (int64_t m = 0; m < kMicroBatches; ++m) {
    scores.push_back(rng.normal_tensor({1, kExperts}, 1.0).add(skew_E).add(rng.normal_tensor({kTokens, kExperts}, 0.5)));
  }
  return scores;
}

Routing route(const at::Tensor& logits_TE, const at::Tensor& offsets_E, SelectionRule rule) {
  const bool on_logits = rule == SelectionRule::Quantile || rule == SelectionRule::MeanQuantile;
  const at::Tensor probs_TE = at::softmax(logits_TE, -1);
  const at::Tensor ids_TK = std::get<1>(at::topk((on_logits ? logits_TE : probs_TE).add(offsets_E), kChosen, -1));
  Routing routing = routing_from_top_k(ids_TK, probs_TE.gather(1, ids_TK), kExperts);
  routing.logits_TE = logits_TE;
  routing.probs_TE = probs_TE;
  return routing;
}

StepPlan plan_of_micro_batches(int64_t step, int64_t num_micro_batches) {
  StepPlan plan{.step = step, .num_micro_batches = num_micro_batches};
  plan.forward_begin = {0};
  for (int64_t m = 0; m < num_micro_batches; ++m) {
    plan.segment_tokens.push_back(kTokens);
    plan.segment_micro_batch.push_back(m);
    plan.forward_begin.push_back(m + 1);
  }
  return plan;
}

struct Outcome {
  double max_vio = 0.0;  // of the last step
  BalanceState state;
};

// Runs steps over the fixed scores; rank r of R takes micro-batches r, r + R, ...
Outcome run_steps(const SelectionConfig& selection, int64_t steps, Communicator& comm) {
  const std::vector<at::Tensor> scores = fixed_scores();
  const BalanceConfig config{.method = "none", .selection = selection};
  Outcome run;
  for (int64_t step = 0; step < steps; ++step) {
    const StepPlan plan = plan_of_micro_batches(step, kMicroBatches / comm.size());
    StepBalance balance(config, {.num_layers = 1, .num_experts = kExperts, .num_chosen = kChosen}, plan, run.state, {comm});
    for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
      const at::Tensor& logits_TE = scores[static_cast<size_t>(forward * comm.size() + comm.rank())];
      const Routing routing = route(logits_TE, balance.selection_offsets_E(0), selection.rule);
      const at::Tensor segment_T = at::zeros({kTokens}, at::kLong);
      balance.record(forward, 0, routing, segment_T);
      balance.record(forward, 0, routing, segment_T);  // recomputation must not count twice
      balance.close_forward(forward);
    }
    balance.close_counting();
    balance.finish(run.state);
    const at::Tensor load_E = balance.step_counts_LE().select(0, 0).to(at::kDouble);
    run.max_vio = load_E.max().div(load_E.mean()).item<double>() - 1.0;
  }
  return run;
}

double max_vio_after(const SelectionConfig& selection, int64_t steps) {
  return run_steps(selection, steps, *make_solo_communicator()).max_vio;
}

TEST(Selection, OneQuantileOfTheWholeStepBalancesWhatMicroBatchesOfOneDomainHide) {
  EXPECT_GT(max_vio_after({.rule = SelectionRule::Quantile}, 1), 1.5);
  EXPECT_LT(max_vio_after({.rule = SelectionRule::Quantile}, 60), 0.1);
  EXPECT_GT(max_vio_after({.rule = SelectionRule::MeanQuantile}, 60), 0.3);
}

TEST(Selection, BiasBalancesInSmallSteps) {
  EXPECT_LT(max_vio_after({.rule = SelectionRule::Bias, .rate = 5e-3}, 150), 0.3);
  EXPECT_LT(max_vio_after({.rule = SelectionRule::BiasCentered, .rate = 5e-3}, 150), 0.3);
}

TEST(Selection, OffsetsOfRanksAreThoseOfOneProcessToTheBit) {
  for (const SelectionRule rule : {SelectionRule::Bias, SelectionRule::BiasCentered, SelectionRule::Quantile}) {
    const Outcome one = run_steps({.rule = rule}, 5, *make_solo_communicator());
    std::mutex guard;
    run_ranks(4, [&](Communicator& comm) {
      const Outcome run = run_steps({.rule = rule}, 5, comm);
      const std::lock_guard lock(guard);
      EXPECT_TRUE(run.state.selection_offsets_LE.equal(one.state.selection_offsets_LE)) << to_string(rule);
    });
  }
}

TEST(Selection, OffsetsOfALayerSumToZero) {
  for (const SelectionRule rule : {SelectionRule::Quantile, SelectionRule::MeanQuantile}) {
    const Outcome run = run_steps({.rule = rule}, 3, *make_solo_communicator());
    EXPECT_NEAR(run.state.selection_offsets_LE.sum().item<double>(), 0.0, 1e-5) << to_string(rule);
    EXPECT_GT(run.state.selection_offsets_LE.abs().max().item<double>(), 0.1) << to_string(rule);
  }
}

// Logits (x, 0, 0, 0), x = 1 to 5, one of four chosen: 5/4 tokens, so one, should lie over each threshold. Expert 0: 4.5,
// half way between 5 and 4; the others 0. Less their mean 1.125, with the sign turned.
TEST(Selection, MeanQuantileByHand) {
  at::Tensor logits_TE = at::zeros({5, 4}, at::kDouble);
  for (int64_t t = 0; t < 5; ++t) logits_TE.mutable_data_ptr<double>()[t * 4] = static_cast<double>(t + 1);
  StepPlan plan = plan_of_micro_batches(0, 1);
  plan.segment_tokens = {5};
  StepBalance balance({.method = "none", .selection = {.rule = SelectionRule::MeanQuantile}},
                      {.num_layers = 1, .num_experts = 4, .num_chosen = 1}, plan, {});
  const at::Tensor ids_TK = at::zeros({5, 1}, at::kLong);
  Routing routing = routing_from_top_k(ids_TK, at::zeros({5, 1}, at::kDouble), 4);
  routing.logits_TE = logits_TE;
  routing.probs_TE = at::softmax(logits_TE, -1);
  balance.record(0, 0, routing, at::zeros({5}, at::kLong));
  balance.close_forward(0);
  balance.close_counting();
  BalanceState state;
  balance.finish(state);
  EXPECT_THAT(floats(state.selection_offsets_LE), testing::ElementsAre(-3.375F, 1.125F, 1.125F, 1.125F));
}

// An expert that every token is kept from has no threshold; averaged, it would leave NaN in the offsets of all.
TEST(Selection, RefusesAThresholdThatIsNotFinite) {
  for (const SelectionRule rule : {SelectionRule::Quantile, SelectionRule::MeanQuantile}) {
    at::Tensor logits_TE = fixed_scores()[0].clone();
    logits_TE.select(1, 0).fill_(-std::numeric_limits<double>::infinity());
    StepPlan plan = plan_of_micro_batches(0, 1);
    StepBalance balance({.method = "none", .selection = {.rule = rule}},
                        {.num_layers = 1, .num_experts = kExperts, .num_chosen = kChosen}, plan, {});
    balance.record(0, 0, route(logits_TE, balance.selection_offsets_E(0), rule), at::zeros({kTokens}, at::kLong));
    balance.close_forward(0);
    balance.close_counting();
    BalanceState state;
    if (rule == SelectionRule::Quantile) {  // its histogram has an edge
      balance.finish(state);
      EXPECT_TRUE(state.selection_offsets_LE.isfinite().all().item<bool>());
    } else {
      EXPECT_THROW(balance.finish(state), ShapeError);
      EXPECT_FALSE(state.selection_offsets_LE.defined());
    }
  }
}

at::Tensor as_column(const at::Tensor& values_T) { return at::stack({values_T, values_T.flip(0)}, 1).select(1, 0); }

// Segment numbers may be a column of a table, a history the transpose of another one.
TEST(Selection, TakesTensorsOfAnyStride) {
  for (const SelectionRule rule : {SelectionRule::Bias, SelectionRule::Quantile, SelectionRule::MeanQuantile}) {
    StepPlan plan = plan_of_micro_batches(0, 2);
    plan.forward_begin = {0, 2};
    const at::Tensor segment_T = at::arange(2 * kTokens, at::kLong).remainder(2);
    const at::Tensor logits_TE = at::cat({fixed_scores()[0], fixed_scores()[1]});
    const at::Tensor offsets_LE = Rng(3, "offsets").normal_tensor({2, kExperts}, 0.1);
    const auto updated = [&](const at::Tensor& segments, const at::Tensor& offsets) {
      BalanceState state{.selection_offsets_LE = offsets};
      StepBalance balance({.method = "none", .selection = {.rule = rule, .decay = rule == SelectionRule::Bias ? 0.0 : 0.5}},
                          {.num_layers = 2, .num_experts = kExperts, .num_chosen = kChosen}, plan, state);
      for (int64_t layer = 0; layer < 2; ++layer) {
        balance.record(0, layer, route(logits_TE, balance.selection_offsets_E(layer), rule), segments);
      }
      balance.close_forward(0);
      balance.close_counting();
      balance.finish(state);
      return state.selection_offsets_LE;
    };
    const at::Tensor expected_LE = updated(segment_T, offsets_LE);
    EXPECT_TRUE(updated(as_column(segment_T), offsets_LE).equal(expected_LE)) << to_string(rule);
    EXPECT_TRUE(updated(segment_T, offsets_LE.t().contiguous().t()).equal(expected_LE)) << to_string(rule);
  }
}

TEST(Selection, QuantileNeedsLogits) {
  const StepPlan plan = plan_of_micro_batches(0, 1);
  StepBalance balance({.method = "none", .selection = {.rule = SelectionRule::Quantile}},
                      {.num_layers = 1, .num_experts = kExperts, .num_chosen = kChosen}, plan, {});
  Routing routing = route(fixed_scores()[0], balance.selection_offsets_E(0), SelectionRule::Quantile);
  routing.logits_TE = at::Tensor();
  EXPECT_THROW(balance.record(0, 0, routing, at::zeros({kTokens}, at::kLong)), StateError);
  EXPECT_THROW(StepBalance({.method = "none", .selection = {.rule = SelectionRule::Quantile}},
                           {.num_layers = 1, .num_experts = 2, .num_chosen = 2}, plan, {}),
               UsageError);
}

}  // namespace
}  // namespace switchyard
