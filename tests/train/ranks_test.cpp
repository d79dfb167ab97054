// Steps and whole runs on several ranks (threads) against one process: loss, counts, gradients, weights, evaluation; stopping,
// failing and resuming together.

#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/train/checkpoint.hpp"
#include "switchyard/train/evaluate.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/run.hpp"
#include "switchyard/train/step.hpp"
#include "tests/train/fixtures.hpp"
#include "tests/train/ranked_runs.hpp"
#include "tests/train/ranked_steps.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr double kNear = 1e-11;

StepOutcome on_ranks(int64_t num_ranks, const ModelConfig& config, const BalanceConfig& balance,
                     const std::vector<Batch>& batches, const ExecutionConfig& execution, const BalanceState& before) {
  StepOutcome outcome;
  run_ranks(num_ranks, [&](Communicator& comm) {
    Decoder model(config, ComputeType::Float64, 3, kRankSeed);
    BalanceState state = before;
    const BalanceRanks ranks{comm};
    const std::vector<Batch> share = share_of_rank(batches, comm.rank(), comm.size());
    StepResult result = run_step(model, balance, state, share, execution, kRankSeed, kRankStep, ranks);
    sum_gradients(model.parameters(), comm);
    if (comm.rank() > 0) return;
    for (const Parameter* parameter : model.parameters()) outcome.gradients.push_back(parameter->grad);
    outcome.result = std::move(result);
    outcome.state = state;
  });
  return outcome;
}

ModelConfig model_with_router(const std::string& router) {
  ModelConfig model = tiny_model();
  model.router.name = router;
  return model;
}

void expect_same_step(const StepOutcome& a, const StepOutcome& b, const std::string& what) {
  SCOPED_TRACE(what);
  ASSERT_EQ(a.gradients.size(), b.gradients.size());
  for (size_t i = 0; i < a.gradients.size(); ++i) {
    ASSERT_EQ(a.gradients[i].defined(), b.gradients[i].defined());
    if (!a.gradients[i].defined()) continue;
    EXPECT_LT(a.gradients[i].sub(b.gradients[i]).abs().max().item<double>(), kNear);
  }
  EXPECT_NEAR(a.result.loss, b.result.loss, kNear);
  EXPECT_EQ(a.result.tokens, b.result.tokens);
  EXPECT_EQ(a.result.targets, b.result.targets);
  EXPECT_NEAR(a.result.balance.weighted_loss, b.result.balance.weighted_loss, kNear);
  EXPECT_THAT(a.result.balance.lbl_L, testing::Pointwise(testing::DoubleNear(kNear), b.result.balance.lbl_L));
  EXPECT_TRUE(at::equal(a.result.step_counts_LE, b.result.step_counts_LE));
  EXPECT_TRUE(at::equal(a.state.previous_counts_LE, b.state.previous_counts_LE));
}

/// What R ranks call one micro-batch when they count over ranks, as one process is told it.
std::vector<Batch> joined_over_ranks(const std::vector<Batch>& micro_batches, size_t num_ranks) {
  std::vector<Batch> joined;
  for (size_t m = 0; m < micro_batches.size(); m += num_ranks) {
    const auto begin = micro_batches.begin() + static_cast<int64_t>(m);
    joined.push_back(join_batches({begin, begin + static_cast<int64_t>(num_ranks)}));
    joined.back().segment_micro_batch.assign(joined.back().segment_tokens.size(), static_cast<int64_t>(m / num_ranks));
  }
  return joined;
}

// The four micro-batches differ in rows, padding and unscored targets; one has no token, so a rank of four is empty.
TEST(RankedStep, IsTheStepOfOneProcess) {
  const std::vector<Batch> batches = make_micro_batches(1);
  for (const std::string scope : {"sequence", "sequences(3)", "micro_batch", "optimizer_batch", "previous_step", "ema(0.9)"}) {
    const BalanceConfig balance = ranked_balance(scope);
    const BalanceState before = one_process(tiny_model(), balance, make_micro_batches(2), step_orders()[0], {}).state;
    for (const ExecutionConfig& order : step_orders()) {
      const StepOutcome one = one_process(tiny_model(), balance, batches, order, before);
      for (const int64_t num_ranks : {2, 4}) {
        const StepOutcome many = on_ranks(num_ranks, tiny_model(), balance, batches, order, before);
        expect_same_step(many, one, join_text(scope, " on ", num_ranks, " ranks"));
        EXPECT_TRUE(at::equal(many.result.micro_batch_counts_MLE, one.result.micro_batch_counts_MLE)) << scope;
      }
    }
  }
}

// These scopes see the ranks: one process must be told which micro-batches belong together.
TEST(RankedStep, ScopesOverRanksAreThoseOfTheDeclaredPartition) {
  const std::vector<Batch> batches = make_micro_batches(1);
  for (const std::string scope : {"ranks", "prefix"}) {
    const BalanceConfig balance = ranked_balance(scope);
    for (const ExecutionConfig& order : step_orders()) {
      for (const int64_t num_ranks : {2, 4}) {
        const StepOutcome one =
            one_process(tiny_model(), balance, joined_over_ranks(batches, static_cast<size_t>(num_ranks)), order, {});
        expect_same_step(on_ranks(num_ranks, tiny_model(), balance, batches, order, {}), one,
                         join_text(scope, " on ", num_ranks, " ranks"));
      }
    }
  }
}

// Routers that draw per token draw by its number within the step, whoever holds it.
TEST(RankedStep, RandomRoutersDrawTheSame) {
  BalanceConfig balance;
  balance.method = "none";
  for (const ForwardPacking forward : {ForwardPacking::Separate, ForwardPacking::Together}) {
    const StepOutcome one =
        one_process(model_with_router("random"), balance, make_micro_batches(1), {.forward = forward}, {});
    for (const int64_t num_ranks : {2, 4}) {
      expect_same_step(on_ranks(num_ranks, model_with_router("random"), balance, make_micro_batches(1), {.forward = forward}, {}),
                       one, "random");
    }
  }
}

// Else equal text would be drawn for alike.
TEST(RankedStep, PositionsRunOnFromMicroBatchToMicroBatch) {
  std::vector<Batch> twice = {make_micro_batches(1)[0], make_micro_batches(1)[0]};
  twice[1].segment_micro_batch = {1, 1};
  BalanceConfig balance;
  balance.method = "none";
  const at::Tensor counts_MLE =
      one_process(model_with_router("random"), balance, twice, step_orders()[0], {}).result.micro_batch_counts_MLE;
  EXPECT_FALSE(counts_MLE[0].equal(counts_MLE[1]));
}

TEST(RankedStep, SharesOfTheRanksAreTheStepInOrder) {
  const std::vector<Batch> batches = make_micro_batches(1);
  const std::vector<Batch> share = share_of_rank(batches, 1, 2);
  ASSERT_EQ(share.size(), 2U);
  EXPECT_TRUE(at::equal(share[0].ids_BS, batches[1].ids_BS));
  EXPECT_TRUE(at::equal(share[1].ids_BS, batches[3].ids_BS));
  EXPECT_THAT(share[1].segment_micro_batch, testing::Each(1));
  EXPECT_THROW((void)share_of_rank(batches, 0, 3), UsageError);
}

// A segment's domain reaches the balancing, on one process too.
TEST(RankedStep, DomainsReachExpertDivergence) {
  BalanceConfig balance = ranked_balance("optimizer_batch");
  balance.method = "expert_divergence";
  const StepOutcome one = one_process(tiny_model(), balance, make_micro_batches(1), step_orders()[0], {});
  EXPECT_NE(one.result.balance.weighted_loss, 0.0);
  expect_same_step(on_ranks(2, tiny_model(), balance, make_micro_batches(1), step_orders()[1], {}), one, "expert_divergence");
}

Parameter some_parameter(c10::IntArrayRef sizes, double gradient) {
  Parameter parameter;
  parameter.name = "weight";
  parameter.master = at::full(sizes, 0.0, at::kFloat);
  parameter.grad = at::full(sizes, gradient, at::kFloat);
  return parameter;
}

// The routers see nothing of it, so balancing has nothing to complain about.
TEST(RankedStep, ALossThatIsNotFiniteOnOneRankEndsAllWithItsName) {
  const std::vector<Batch> batches = make_micro_batches(1);
  for (const ExecutionConfig& order : step_orders()) {
    run_ranks(2, [&](Communicator& comm) {
      Decoder model(tiny_model(), ComputeType::Float64, 3, kRankSeed);
      if (comm.rank() == 1) {
        for (Parameter* parameter : model.parameters()) {
          if (parameter->name == "lm_head.weight") parameter->master.fill_(std::nan(""));
        }
      }
      BalanceState state;
      const BalanceRanks ranks{comm};
      try {
        (void)run_step(model, ranked_balance("optimizer_batch"), state, share_of_rank(batches, comm.rank(), 2), order, kRankSeed,
                       kRankStep, ranks);
        ADD_FAILURE() << "no error on rank " << comm.rank();
      } catch (const CommError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("rank 1: the loss of step"));
      }
    });
  }
}

// Counting is closed when the second forward of a pre-pass, or of recomputed layers, chooses otherwise: no message is left but
// the last.
TEST(RankedStep, ARoutingThatDoesNotReplayOnOneRankEndsAllWithItsName) {
  for (const ExecutionConfig& order : step_orders()) {
    if (order.exact == ExactOrder::Retain) continue;
    run_ranks(2, [&](Communicator& comm) {
      const std::vector<Batch> batches = share_of_rank(make_micro_batches(1), comm.rank(), 2);
      Decoder model(tiny_model(), ComputeType::Float64, 3, kRankSeed);
      const auto turn_router = [&](const at::Tensor&) {
        for (Parameter* parameter : model.router_weights()) {  // through the pointer: autograd would refuse a changed weight
          auto* const numbers = parameter->master.mutable_data_ptr<double>();
          std::reverse(numbers, numbers + parameter->master.numel());
        }
      };
      const auto disturb = [&](RoutingPhase phase, int64_t forward) {
        if (comm.rank() == 0 || phase != RoutingPhase::Train) return;
        if (order.exact == ExactOrder::Prepass && forward == 0) turn_router({});
        // Recomputed layers run in backward: turn when the gradient reaches the head.
        if (order.exact == ExactOrder::Recompute && forward == 0) model.parameters().back()->compute.register_hook(turn_router);
      };
      BalanceState state;
      const BalanceRanks ranks{comm};
      try {
        (void)run_step(model, ranked_balance("optimizer_batch"), state, batches, order, kRankSeed, kRankStep, ranks, disturb);
        ADD_FAILURE() << "no error on rank " << comm.rank();
      } catch (const CommError& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("rank 1: step 4, forward 0, layer"));
      }
      EXPECT_FALSE(state.previous_counts_LE.defined());
    });
  }
}

// One of more than one message, a small one, one that only rank 0 has, one that is not trained, one that is divided.
TEST(SumGradients, AddsOverRanksAndLeavesShardsAlone) {
  run_ranks(3, [](Communicator& comm) {
    const auto own = static_cast<double>(comm.rank() + 1);
    std::array<Parameter, 5> all = {some_parameter({2, kMessageNumbers / 2 + 7}, own), some_parameter({5}, 10 * own),
                                    some_parameter({3}, 1.0), some_parameter({2}, own), some_parameter({2}, own)};
    all[0].grad.view({-1})[kMessageNumbers] = 100 * own;
    if (comm.rank() > 0) all[2].grad.reset();
    all[3].training = Training::Frozen;
    all[4].shard = {2 * comm.rank(), 6};
    ParameterRefs refs;
    for (Parameter& parameter : all) refs.push_back(&parameter);
    sum_gradients(refs, comm);
    EXPECT_EQ(all[0].grad.view({-1})[0].item<float>(), 6.0F);
    EXPECT_EQ(all[0].grad.view({-1})[kMessageNumbers].item<float>(), 600.0F);
    EXPECT_EQ(all[0].grad.view({-1})[-1].item<float>(), 6.0F);
    EXPECT_EQ(all[1].grad[4].item<float>(), 60.0F);
    EXPECT_EQ(all[2].grad[1].item<float>(), 1.0F);
    EXPECT_EQ(all[3].grad[0].item<float>(), static_cast<float>(own));
    EXPECT_EQ(all[4].grad[0].item<float>(), static_cast<float>(own));
    // Once each of what is whole, the parts of all ranks of what is divided: 2 (1 + 4 + 9).
    const ParameterRefs two = {&all[1], &all[4]};
    EXPECT_NEAR(global_gradient_norm(two, comm), std::sqrt(5 * 3600.0 + 28.0), 1e-4);  // norms are taken in fp32
  });
}

class RankedRun : public RankedRunTest {};

TEST_F(RankedRun, HasTheCurveOfOneProcess) {
  for (const std::string scope : {"optimizer_batch", "micro_batch", "previous_step"}) {
    RunConfig run = config();
    parse(scope, run.balance.scope);
    start(1, run, scope + "-1");
    for (const int64_t num_ranks : {2, 4}) {
      const std::string name = join_text(scope, "-", num_ranks);
      start(num_ranks, run, name);
      expect_near_run(scope + "-1", name);
    }
  }
}

// `prefix` counts over ranks, so its curve is that of one process whose micro-batches are as large.
TEST_F(RankedRun, PrefixHasTheCurveOfTheDeclaredPartition) {
  const RunConfig run = config();
  const BalanceConfig balance = ranked_balance("prefix");
  for (const int64_t num_ranks : {1, 2, 4}) {
    const std::vector<double> one = curve(run, balance, 1, [&](const std::vector<Batch>& micro_batches) {
      return joined_over_ranks(micro_batches, static_cast<size_t>(num_ranks));
    });
    const std::vector<double> many = curve(run, balance, num_ranks, [](const std::vector<Batch>& micro_batches) {
      return micro_batches;
    });
    EXPECT_THAT(many, testing::Pointwise(testing::DoubleNear(1e-10), one)) << num_ranks << " ranks";
    EXPECT_LT(one.back(), one.front());
  }
}

TEST_F(RankedRun, GoesOnAtAnyNumberOfRanks) {
  const RunConfig run = config();
  start(1, run, "whole");
  const std::array<std::pair<int64_t, int64_t>, 4> changes = {{{2, 1}, {2, 4}, {1, 2}, {4, 2}}};
  for (const auto& [before, after] : changes) {
    const std::string name = join_text("from-", before, "-to-", after);
    start_and_stop(before, run, name, 3, /*asked_rank=*/before - 1);
    resume(after, run, name);
    expect_near_run("whole", name);
  }
}

TEST_F(RankedRun, AnotherNumberOfRanksIsTold) {
  RunConfig run = config();
  parse("prefix", run.balance.scope);
  start_and_stop(2, run, "prefix", 3, 0);
  resume(4, run, "prefix");
  EXPECT_THAT(notices("prefix"), testing::Contains("the balancing scope prefix counts over 4 ranks from here on, before over 2"));
  EXPECT_THAT(notices("prefix"), testing::Contains(testing::HasSubstr("trained on 4 ranks, experts replicated, before on 2")));
}

TEST_F(RankedRun, ResumedAtTheSameNumberOfRanksHasTheSameBits) {
  RunConfig run = config();
  run.execution.dtype = ComputeType::Float32;
  start(2, run, "whole");
  start_and_stop(2, run, "parts", 3, 1);
  resume(2, run, "parts");
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "balance.safetensors", "state.json"}) {
    EXPECT_EQ(read_file(newest("whole") / file), read_file(newest("parts") / file)) << file;
  }
}

// Six forwards of 32 tokens, more than one round; experts divided too, where a rank without a forward must serve the others.
TEST_F(RankedRun, SharesAnEvaluationAndHasTheNumbersOfOneProcess) {
  for (const std::string router : {"top_k", "random"}) {
    RunConfig run = config();
    run.model.num_experts = 8;
    run.model.router.name = router;
    const Dataset dataset(run.data.path);
    const HeldoutSet heldout = load_heldout(dataset, run);
    EvaluationTask task;
    task.permutations = 20;
    task.forward_tokens = 32;
    Decoder whole(run.model, ComputeType::Float64, 3, kRankSeed);
    RunRanks alone(nullptr);
    const EvaluationRecord one = evaluate(whole, heldout, task, alone).value();
    EvaluationTask in_one_forward = task;
    in_one_forward.forward_tokens = 4096;
    expect_near_evaluation(evaluate(whole, heldout, in_one_forward, alone).value(), one);
    for (const int64_t num_ranks : {2, 4}) {
      run_ranks(num_ranks, [&](Communicator& comm) {
        Decoder model(run.model, ComputeType::Float64, 3, kRankSeed, &comm);
        RunRanks ranks(&comm);
        const std::optional<EvaluationRecord> many = evaluate(model, heldout, task, ranks);
        ASSERT_EQ(many.has_value(), comm.rank() == 0);
        if (many) expect_near_evaluation(*many, one);
      });
    }
  }
}

TEST_F(RankedRun, TellsEveryRankWhatOneCannotDo) {
  RunConfig run = config();
  run.data.batcher.micro_batches = 3;
  EXPECT_THAT(errors(2, run, run), testing::Each(testing::HasSubstr("data.micro_batches is 3, which 2 ranks")));
  RunConfig lost = config();
  lost.data.path = "nowhere";
  EXPECT_THAT(errors(2, config(), lost), testing::Each(testing::HasSubstr("nowhere")));
  RunConfig other = config();
  other.balance.coefficient = 0.2;
  EXPECT_THAT(errors(2, config(), other),
              testing::Each(testing::HasSubstr("differ in configuration: rank 0 has balance.coefficient = 0.1, rank 1 has balance.coefficient = 0.2;")));
  EXPECT_FALSE(fs::exists(folder("errors")));
}

// They would send different messages, and wait for each other until the time limit.
TEST_F(RankedRun, TellsEveryRankWhereOnlyOneWasAskedToResume) {
  RunConfig run = config();
  start_and_stop(2, run, "stopped", 3, 0);
  run.execution.time_limit = 5;
  EXPECT_THAT(errors_where_one_resumes(2, run, "stopped"),
              testing::Each(testing::HasSubstr("the ranks differ in what they were asked for: rank 0 has --resume, rank 1 has a new run")));
  EXPECT_FALSE(fs::exists(folder("errors")));
}

TEST_F(RankedRun, EndsOnEveryRankWhereNothingIsLearned) {
  RunConfig run = config();
  run.model.init_deviation = 0.0;
  run.balance.coefficient = 0.0;
  EXPECT_THAT(errors(2, run, run), testing::Each(testing::HasSubstr("the gradient of step 1 is 0 for every weight")));
}

TEST_F(RankedRun, EndsWhenOneRankFails) {
  try {
    start_and_fail(2, config(), "failed", 3);
    FAIL() << "the other rank went on";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "power cut");
  }
}

}  // namespace
}  // namespace switchyard
