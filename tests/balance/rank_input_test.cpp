// What the model of one rank hands over wrongly: every rank must end with the same error, wherever it is found.

#include <ATen/core/TensorBody.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "explicit_routing.hpp"
#include "switchyard/comm/agreement.hpp"
#include "switchyard/comm/threads.hpp"

namespace switchyard::toy {
namespace {

constexpr BalanceShape kShape{.num_layers = 1, .num_experts = 2, .num_chosen = 1};
constexpr const char* kPlace = "step 0, forward 0, layer 0: ";

using Spoil = std::function<void(ExplicitForward&)>;

struct Case {
  const char* name;
  Spoil spoil;
};

std::vector<Case> cases() {
  return {
      {"segment numbers too short", [](ExplicitForward& step) { step.segment_T = step.segment_T.narrow(0, 0, 1); }},
      {"segment numbers in two dimensions", [](ExplicitForward& step) { step.segment_T = step.segment_T.unsqueeze(0); }},
      {"no segment numbers", [](ExplicitForward& step) { step.segment_T = at::Tensor(); }},
      {"segment numbers of 32 bits", [](ExplicitForward& step) { step.segment_T = step.segment_T.to(at::kInt); }},
      {"segment numbers out of range", [](ExplicitForward& step) { step.segment_T = step.segment_T.add(7); }},
      {"probabilities of more experts",
       [](ExplicitForward& step) { step.routing.probs_TE = step.routing.probs_TE.repeat({1, 2}).div(2); }},
      {"complex probabilities",
       [](ExplicitForward& step) { step.routing.probs_TE = step.routing.probs_TE.to(at::kComplexDouble); }},
      {"complex logits", [](ExplicitForward& step) { step.routing.logits_TE = step.routing.logits_TE.to(at::kComplexDouble); }},
      {"whole probabilities", [](ExplicitForward& step) { step.routing.probs_TE = step.routing.probs_TE.round().to(at::kLong); }},
      {"no tokens of slots", [](ExplicitForward& step) { step.routing.token_A = at::Tensor(); }},
      {"tokens of slots of 32 bits", [](ExplicitForward& step) { step.routing.token_A = step.routing.token_A.to(at::kInt); }},
      {"no experts of slots", [](ExplicitForward& step) { step.routing.expert_A = at::Tensor(); }},
      {"fewer experts than tokens of slots",
       [](ExplicitForward& step) { step.routing.expert_A = step.routing.expert_A.narrow(0, 0, 1); }},
  };
}

ExplicitForward some_forward() {
  return explicit_forward({{0, {0}, {.75, .25}}, {0, {1}, {.25, .75}}, {1, {0}, {1.0, 0.0}}}, kShape.num_experts);
}

void run_step_of(Communicator& comm, ScopeKind kind, const ExplicitForward& step, int64_t forward) {
  const BalanceConfig config{.method = "lbl", .scope = {.kind = kind}, .coefficient = 0.5, .z_coefficient = 0.1};
  StepBalance balance(config, kShape, explicit_plan({{2, 1}}), {}, {comm});
  record_explicit(balance, forward, 0, step);
  balance.close_forward(0);
  balance.await_forward(0);
  balance.close_counting();
}

// Scopes whose counts travel with each forward, and one that sends nothing before the last.
TEST(BadInput, OfTheModelOfOneRankEndsEveryRankWithItsName) {
  for (const ScopeKind kind : {ScopeKind::OptimizerBatch, ScopeKind::Ranks, ScopeKind::MicroBatch}) {
    for (const Case& each : cases()) {
      SCOPED_TRACE(each.name);
      run_ranks(3, [&](Communicator& comm) {
        ExplicitForward step = some_forward();
        if (comm.rank() == 1) each.spoil(step);
        expect_message<SharedError>([&] { run_step_of(comm, kind, step, 0); }, join_text("rank 1: ", kPlace));
      });
    }
  }
}

TEST(BadInput, OfTheModelOfASingleRankIsToldAtOnce) {
  for (const Case& each : cases()) {
    SCOPED_TRACE(each.name);
    ExplicitForward step = some_forward();
    each.spoil(step);
    expect_message<ShapeError>([&] { run_step_of(*make_solo_communicator(), ScopeKind::MicroBatch, step, 0); }, kPlace);
  }
}

// A scope of each rank's own tokens sends nothing before the step's last message, and backward comes earlier.
TEST(BadInput, SegmentsOutOfRangeOnOneRankDoNotEndItsBackward) {
  run_ranks(2, [](Communicator& comm) {
    ExplicitForward step = some_forward();
    if (comm.rank() == 1) step.segment_T = step.segment_T.add(7);
    const BalanceConfig config{.method = "lbl", .scope = {.kind = ScopeKind::MicroBatch}, .coefficient = 0.5};
    StepBalance balance(config, kShape, explicit_plan({{2, 1}}), {}, {comm});
    step.routing.probs_TE = balance.through_probs(0, 0, step.routing.probs_TE.clone().set_requires_grad(true), step.segment_T);
    balance.record(0, 0, step.routing, step.segment_T);
    balance.close_forward(0);
    balance.await_forward(0);
    step.routing.probs_TE.sum().backward();
    expect_message<SharedError>([&] { balance.close_counting(); }, join_text("rank 1: ", kPlace, "segment numbers are 7 to 8"));
  });
}

TEST(BadInput, AForwardThatOneRankDoesNotHaveEndsEveryRank) {
  run_ranks(2, [](Communicator& comm) {
    expect_message<SharedError>([&] { run_step_of(comm, ScopeKind::Ranks, some_forward(), comm.rank()); },
                                "rank 1: step 0: forward 1 of a plan with 1");
  });
}

// A loss that is asked for needs it in every layer; what it is given may be as wrong as the scores.
TEST(BadInput, OrthogonalityLossesOfOneRankEndEveryRank) {
  run_ranks(2, [](Communicator& comm) {
    const BalanceConfig config{.method = "none", .orthogonality_coefficient = 0.1};
    const ExplicitForward step = some_forward();
    const at::Tensor loss_T = step.routing.probs_TE.select(1, 0);
    const auto run = [&](const at::Tensor& given_T) {
      StepBalance balance(config, kShape, explicit_plan({{2, 1}}), {}, {comm});
      static_cast<void>(balance.through_outputs(0, 0, step.routing.probs_TE, given_T, step.segment_T));
      record_explicit(balance, 0, 0, step);
      balance.close_forward(0);
      balance.close_counting();
    };
    run(loss_T);
    const std::string text = join_text("rank 1: ", kPlace, "orthogonality losses");
    expect_message<SharedError>([&] { run(comm.rank() == 1 ? loss_T.narrow(0, 0, 1) : loss_T); }, text);
    expect_message<SharedError>([&] { run(comm.rank() == 1 ? at::Tensor() : loss_T); }, text);
    expect_message<SharedError>([&] { run(comm.rank() == 1 ? loss_T.to(at::kComplexDouble) : loss_T); }, text);
  });
}

}  // namespace
}  // namespace switchyard::toy
