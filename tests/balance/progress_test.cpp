// A step that is saved in its middle and taken up by another object, as another process would.

#include "switchyard/balance/progress.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "explicit_routing.hpp"
#include "switchyard/comm/threads.hpp"

namespace switchyard::toy {
namespace {

constexpr BalanceShape kShape{.num_layers = 2, .num_experts = 2, .num_chosen = 1};

BalanceConfig config_of(ScopeKind kind) {
  return {.method = "lbl", .scope = {.kind = kind}, .coefficient = 0.5, .z_coefficient = 0.1, .layers = LayerReduction::Sum};
}

// Three micro-batches of 2, 3 and 1 tokens, all of `expert`.
StepPlan plan_of_three() { return explicit_plan({{2}, {3}, {1}}); }
void run_forward(StepBalance& balance, int64_t forward, int64_t expert) {
  const std::vector<int64_t> lengths = {2, 3, 1};
  const std::vector<Token> tokens(static_cast<size_t>(lengths[static_cast<size_t>(forward)]), Token{0, {expert}, {.7, .3}});
  for (int64_t layer = 0; layer < kShape.num_layers; ++layer) {
    record_explicit(balance, forward, layer, explicit_forward(tokens, kShape.num_experts));
  }
}
void run_and_close(StepBalance& balance, int64_t forward, int64_t expert) {
  run_forward(balance, forward, expert);
  balance.close_forward(forward);
  balance.await_forward(forward);
}

TEST(Progress, TheRestOfAStepSeesWhatWasCountedBeforeTheStop) {
  StepBalance first(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  run_and_close(first, 0, 0);
  const StepProgress saved = first.progress();
  StepBalance second(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  second.resume(saved);
  run_and_close(second, 1, 1);
  // 2 slots of expert 0 before the stop, 3 of expert 1 behind it: E * lambda * f / T of the step.
  EXPECT_THAT(doubles_of(second.coefficients_SE(1, 0)), testing::Pointwise(testing::DoubleNear(1e-15), {.4 / 6, .6 / 6}));
  run_and_close(second, 2, 0);
  second.close_counting();
  EXPECT_THAT(doubles_of(second.micro_batch_counts_MLE().select(1, 0)), testing::ElementsAre(2, 0, 0, 3, 1, 0));
}

TEST(Progress, AForwardThatWasHalfRecordedRunsAgainAndCountsOnce) {
  StepBalance first(config_of(ScopeKind::OptimizerBatch), kShape, plan_of_three(), {});
  run_and_close(first, 0, 0);
  record_explicit(first, 1, 0, explicit_forward(std::vector<Token>(3, Token{0, {1}, {.7, .3}}), 2));  // layer 0 only
  const StepProgress saved = first.progress();
  StepBalance second(config_of(ScopeKind::OptimizerBatch), kShape, plan_of_three(), {});
  second.resume(saved);
  run_and_close(second, 0, 0);  // its backward is still to come, so it runs again; closing it again changes nothing
  run_and_close(second, 1, 1);
  run_and_close(second, 2, 0);
  second.close_counting();
  EXPECT_THAT(doubles_of(second.step_counts_LE()), testing::ElementsAre(3, 3, 3, 3));
  StepBalance third(config_of(ScopeKind::OptimizerBatch), kShape, plan_of_three(), {});
  third.resume(saved);
  expect_message<StateError>([&] { run_forward(third, 0, 1); }, "The routing does not replay");
}

TEST(Progress, SavingChangesNothingAndIsNotChangedByWhatFollows) {
  StepBalance balance(config_of(ScopeKind::OptimizerBatch), kShape, plan_of_three(), {});
  run_and_close(balance, 0, 0);
  const StepProgress saved = balance.progress();
  const at::Tensor counts_LSE = saved.tensors.at("counts_LSE").clone();
  run_and_close(balance, 1, 1);
  EXPECT_TRUE(saved.tensors.at("counts_LSE").equal(counts_LSE));
  EXPECT_FALSE(balance.progress().tensors.at("counts_LSE").equal(counts_LSE));
}

TEST(BadInput, ProgressThatDoesNotFitIsRefusedBeforeItIsTaken) {
  StepBalance saved_at(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  run_and_close(saved_at, 0, 0);
  const StepProgress saved = saved_at.progress();
  StepBalance other_plan(config_of(ScopeKind::Prefix), kShape, explicit_plan({{2}, {3}}), {});
  expect_message<ShapeError>([&] { other_plan.resume(saved); }, "of one with 3 forwards, this one has 2");
  StepBalance other_lengths(config_of(ScopeKind::Prefix), kShape, explicit_plan({{2}, {2}, {2}}), {});
  expect_message<ShapeError>([&] { other_lengths.resume(saved); }, "segments of other lengths");
  StepBalance empty(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  expect_message<ShapeError>([&] { empty.resume({}); }, "has no 'begun_with'");
  StepBalance begun(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  run_forward(begun, 0, 0);
  expect_message<StateError>([&] { begun.resume(saved); }, "after this step has begun");
}

// The shapes are the same, so nothing but what was saved beside the counts can tell.
TEST(BadInput, ProgressOfAStepThatWasBegunOtherwiseIsRefused) {
  const StepPlan plan = plan_of_three();
  const auto saved_of = [&](const BalanceConfig& with) {
    StepBalance balance(with, kShape, plan, {});
    run_and_close(balance, 0, 0);
    return balance.progress();
  };
  BalanceConfig config = config_of(ScopeKind::OptimizerBatch);
  StepProgress saved = saved_of(config);
  const auto expect_refused = [&](const BalanceConfig& with, const BalanceShape& shape, const StepPlan& planned,
                                  const BalanceState& state, const std::string& text) {
    StepBalance balance(with, shape, planned, state);
    expect_message<ShapeError>([&] { balance.resume(saved); }, text);
    EXPECT_FALSE(balance.progress().tensors.at("recorded_FL").any().item<bool>());
  };
  BalanceConfig other_method = config, no_z_loss = config;
  other_method.method = "gshard";
  no_z_loss.z_coefficient = 0.0;
  expect_refused(other_method, kShape, plan, {}, "as balance settings");
  expect_refused(no_z_loss, kShape, plan, {}, "as balance settings");
  BalanceShape two_chosen = kShape, in_stages = kShape;
  two_chosen.num_chosen = 2;
  in_stages.total_layers = 4;
  expect_refused(config, two_chosen, plan, {}, "1 experts chosen per token, this one has 2");
  expect_refused(config, in_stages, plan, {}, "2 MoE layers in all stages, this one has 4");
  StepPlan later = plan, averaged = plan, labelled = plan;
  later.step = 9;
  averaged.contract.micro_batches = Averaging::Mean;
  labelled.segment_domain = {0, 1, 0};
  expect_refused(config, kShape, later, {}, "0 steps done, this one has 9");
  expect_refused(config, kShape, averaged, {}, "as contract over micro-batches");
  expect_refused(config, kShape, labelled, {}, "as domains of the segments");
  config = config_of(ScopeKind::PreviousStep);
  saved = saved_of(config);
  const BalanceState history{.previous_counts_LE = saved.tensors.at("counts_LSE").sum(1)};
  expect_refused(config, kShape, plan, history, "previous_counts_LE of the balance state");
}

TEST(BadInput, ProgressOfAnotherRankEndsEveryRank) {
  std::vector<StepProgress> saved_R(2);
  run_ranks(2, [&](Communicator& comm) {
    StepBalance balance(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    run_and_close(balance, 0, comm.rank());
    saved_R[static_cast<size_t>(comm.rank())] = balance.progress();
  });
  run_ranks(2, [&](Communicator& comm) {
    StepBalance swapped(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    expect_message<CommError>([&] { swapped.resume(saved_R[static_cast<size_t>(1 - comm.rank())]); }, "1 as data rank, this one has 0");
    StepBalance right(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    right.resume(saved_R[static_cast<size_t>(comm.rank())]);
  });
  StepBalance alone(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {});
  expect_message<ShapeError>([&] { alone.resume(saved_R[0]); }, "2 ranks, this one has 1");
}

TEST(BadInput, RanksThatSavedAtDifferentForwardsAllSaySo) {
  std::vector<StepProgress> saved_R(2);
  run_ranks(2, [&](Communicator& comm) {  // rank 1 saves a forward later
    StepBalance balance(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    for (int64_t forward = 0; forward < 2; ++forward) {
      run_and_close(balance, forward, 0);
      if (forward == comm.rank()) saved_R[static_cast<size_t>(forward)] = balance.progress();
    }
  });
  run_ranks(2, [&](Communicator& comm) {
    StepBalance balance(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    expect_message<CommError>([&] { balance.resume(saved_R[static_cast<size_t>(comm.rank())]); },
                              "forwards that were closed when progress was saved");
  });
}

TEST(BadInput, ProgressThatOneRankCannotReadEndsEveryRank) {
  run_ranks(2, [](Communicator& comm) {
    StepBalance balance(config_of(ScopeKind::Prefix), kShape, plan_of_three(), {}, {comm});
    const StepProgress saved = comm.rank() == 1 ? StepProgress{} : balance.progress();
    expect_message<CommError>([&] { balance.resume(saved); }, "rank 1: saved progress of a step has no");
  });
}

}  // namespace
}  // namespace switchyard::toy
