#pragma once
// Routings written down number by number, and a step that takes them: for hand-worked tests.

#include <ATen/ops/empty.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::toy {

/// One token: where it lies, whom it was sent to, with which probabilities.
struct Token {
  int64_t segment = 0;  // of the forward, -1 for padding
  std::vector<int64_t> experts;
  std::vector<double> probs;
};

struct ExplicitForward {
  Routing routing;
  at::Tensor segment_T;
};

/// All tokens must have equally many experts and probabilities. Logits are the logarithms of the probabilities.
inline ExplicitForward explicit_forward(const std::vector<Token>& tokens, int64_t num_experts) {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  const int64_t num_chosen = tokens.empty() ? 1 : static_cast<int64_t>(tokens[0].experts.size());
  at::Tensor ids_TK = at::empty({num_tokens, num_chosen}, at::kLong);
  at::Tensor probs_TE = at::empty({num_tokens, num_experts}, at::kDouble);
  at::Tensor segment_T = at::empty({num_tokens}, at::kLong);
  for (int64_t t = 0; t < num_tokens; ++t) {
    const Token& token = tokens[static_cast<size_t>(t)];
    std::copy(token.experts.begin(), token.experts.end(), ids_TK.mutable_data_ptr<int64_t>() + t * num_chosen);
    std::copy(token.probs.begin(), token.probs.end(), probs_TE.mutable_data_ptr<double>() + t * num_experts);
    segment_T.mutable_data_ptr<int64_t>()[t] = token.segment;
    if (token.segment < 0) ids_TK.select(0, t).fill_(-1);
  }
  ExplicitForward forward{.routing = routing_from_top_k(ids_TK, probs_TE.gather(1, ids_TK.clamp_min(0)), num_experts),
                          .segment_T = segment_T};
  forward.routing.probs_TE = probs_TE;
  forward.routing.logits_TE = probs_TE.log();
  return forward;
}

/// Records one layer of one forward as a MoE layer does.
inline void record_explicit(StepBalance& balance, int64_t forward, int64_t layer, const ExplicitForward& step) {
  static_cast<void>(balance.through_logits(forward, layer, step.routing.logits_TE, step.segment_T));
  static_cast<void>(balance.through_probs(forward, layer, step.routing.probs_TE, step.segment_T));
  balance.record(forward, layer, step.routing, step.segment_T);
}

/// A plan with one forward per micro-batch; segments[m] are the token counts of micro-batch m's segments.
inline StepPlan explicit_plan(const std::vector<std::vector<int64_t>>& segments) {
  StepPlan plan;
  plan.forward_begin = {0};
  for (const std::vector<int64_t>& lengths : segments) {
    for (const int64_t length : lengths) {
      plan.segment_tokens.push_back(length);
      plan.segment_micro_batch.push_back(plan.num_micro_batches);
    }
    plan.forward_begin.push_back(plan.num_segments());
    ++plan.num_micro_batches;
  }
  return plan;
}

/// A whole step of one layer, one forward per micro-batch, counting closed.
inline StepBalance explicit_step(const BalanceConfig& config, const std::vector<std::vector<Token>>& micro_batches,
                                 const StepPlan& plan, int64_t num_experts, const BalanceState& state = {}) {
  StepBalance balance(config, {.num_layers = 1, .num_experts = num_experts, .num_chosen = 1}, plan, state);
  for (size_t m = 0; m < micro_batches.size(); ++m) {
    record_explicit(balance, static_cast<int64_t>(m), 0, explicit_forward(micro_batches[m], num_experts));
    balance.close_forward(static_cast<int64_t>(m));
  }
  balance.close_counting();
  return balance;
}

inline std::vector<double> doubles_of(const at::Tensor& values) {
  const at::Tensor flat = values.to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

/// The call throws an error of this type whose message has this text.
template <typename ErrorType, typename Call>
void expect_message(const Call& call, const std::string& text) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one with: " << text;
  } catch (const ErrorType& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(text));
  }
}

}  // namespace switchyard::toy
