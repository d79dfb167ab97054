// Experts divided over ranks against experts that every rank holds: whole steps, whole runs, checkpoints between them.

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/train/adamw.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/shards.hpp"
#include "switchyard/train/step.hpp"
#include "tests/train/fixtures.hpp"
#include "tests/train/ranked_runs.hpp"
#include "tests/train/ranked_steps.hpp"

namespace switchyard {
namespace {

constexpr double kNearShard = 1e-10;
constexpr int64_t kExperts = 8;

ModelConfig model_of_eight() {
  ModelConfig model = tiny_model();
  model.num_experts = kExperts;
  return model;
}

// Every order of execution, recomputed layers too; the third micro-batch is all padding.
TEST(ShardedStep, HasTheLossCountsAndGradientsOfOneProcess) {
  const std::vector<Batch> batches = make_micro_batches(1);
  const BalanceConfig balance = ranked_balance("optimizer_batch");
  for (const ExecutionConfig& order : step_orders()) {
    const StepOutcome one = one_process(model_of_eight(), balance, batches, order, {});
    for (const int64_t num_ranks : {2, 4}) {
      run_ranks(num_ranks, [&](Communicator& comm) {
        Decoder model(model_of_eight(), ComputeType::Float64, 3, kRankSeed, &comm);
        BalanceState state;
        const BalanceRanks ranks{comm};
        const std::vector<Batch> share = share_of_rank(batches, comm.rank(), comm.size());
        const StepResult result = run_step(model, balance, state, share, order, kRankSeed, kRankStep, ranks);
        const ParameterRefs parameters = model.parameters();
        sum_gradients(parameters, comm);
        EXPECT_NEAR(result.loss, one.result.loss, kNearShard);
        EXPECT_TRUE(result.step_counts_LE.equal(one.result.step_counts_LE));
        int64_t divided = 0;
        for (size_t i = 0; i < parameters.size(); ++i) {
          const Parameter& parameter = *parameters[i];
          at::Tensor expected = one.gradients[i];
          if (is_sharded(parameter)) {
            ++divided;
            expected = expected.narrow(0, parameter.shard.begin, kExperts / num_ranks);
          }
          EXPECT_TRUE(parameter.grad.allclose(expected, 0.0, kNearShard)) << parameter.name;
        }
        EXPECT_EQ(divided, 4);  // two matrices in each of two layers
        EXPECT_NEAR(global_gradient_norm(parameters, comm), one.gradient_norm, kNearShard);
      });
    }
  }
}

TEST(Shards, GoWholeAndComeBack) {
  const at::Tensor whole = Rng(11, "whole").normal_tensor({kExperts, 3}, 1.0);
  run_ranks(4, [&](Communicator& comm) {
    const OwnRowsByName rows = {{"a", {2 * comm.rank(), 2, kExperts}}};
    const TensorMap own = take_own({{"a", whole}, {"b", whole}}, rows);
    EXPECT_EQ(own.at("a").size(0), 2);
    EXPECT_TRUE(own.at("b").equal(whole));
    constexpr int64_t kOneRowEach = 4 * 3 * 8;  // as if messages could be no longer
    for (const int64_t most_bytes : {int64_t{1} << 30, kOneRowEach}) {
      const TensorMap again = make_all(whole_tensors(to_save(own), rows, comm, most_bytes));
      if (comm.rank() == 0) {
        EXPECT_TRUE(again.at("a").equal(whole));
      }
    }
    EXPECT_THROW((void)take_own({{"a", whole.narrow(0, 0, 7)}}, rows), DataError);
  });
}

class ShardedRun : public RankedRunTest {
 protected:
  [[nodiscard]] RunConfig config_of(ExpertPlacement experts) const {
    RunConfig run = config();
    run.model.num_experts = kExperts;
    run.execution.experts = experts;
    return run;
  }
};

TEST_F(ShardedRun, HasTheCurveOfOneProcess) {
  for (const std::string scope : {"optimizer_batch", "micro_batch", "prefix"}) {
    RunConfig run = config_of(ExpertPlacement::Sharded);
    parse(scope, run.balance.scope);
    for (const int64_t num_ranks : {2, 4}) {
      RunConfig replicated = run;
      replicated.execution.experts = ExpertPlacement::Replicated;
      // `prefix` counts over ranks: its partition is that of as many.
      const int64_t like = scope == "prefix" ? num_ranks : 1;
      const std::string one = join_text(scope, "-replicated-", num_ranks);
      start(like, replicated, one);
      start(num_ranks, run, join_text(scope, "-sharded-", num_ranks));
      expect_near_run(one, join_text(scope, "-sharded-", num_ranks));
    }
  }
}

TEST_F(ShardedRun, GoesOnAtAnyNumberOfRanksAndPlacement) {
  const RunConfig whole = config_of(ExpertPlacement::Replicated);
  const RunConfig divided = config_of(ExpertPlacement::Sharded);
  start(1, whole, "whole");
  struct Change {
    int64_t before, after;
    const RunConfig& first;
    const RunConfig& then;
  };
  for (const Change& change : {Change{2, 1, divided, whole}, Change{2, 4, divided, divided}, Change{1, 4, whole, divided},
                               Change{4, 2, divided, whole}}) {
    const std::string name = join_text("from-", change.before, "-to-", change.after);
    start_and_stop(change.before, change.first, name, 3, 0);
    resume(change.after, change.then, name);
    expect_near_run("whole", name);
  }
}

TEST_F(ShardedRun, RefusesExpertsThatCannotBeShared) {
  RunConfig run = config_of(ExpertPlacement::Sharded);
  run.model.num_experts = 6;
  EXPECT_THAT(errors(4, run, run), testing::Each(testing::HasSubstr("model.num_experts is 6, which 4 ranks")));
}

}  // namespace
}  // namespace switchyard
