// Balances one step of two micro-batches that each use one expert only. Over the whole step both experts are used alike, so
// the loss is 1, its smallest value; counted in each micro-batch it would be E = 2 wherever the router is sure of itself.

#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <iostream>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/train/run_config.hpp"

namespace {

double loss_of(const char* scope_name) {
  constexpr int64_t kTokens = 4;
  switchyard::BalanceConfig config;
  parse(scope_name, config.scope);
  config.coefficient = 1.0;
  switchyard::StepPlan plan;
  plan.segment_tokens = {kTokens, kTokens};
  plan.segment_micro_batch = {0, 1};
  plan.forward_begin = {0, 1, 2};
  const switchyard::BalanceState state;
  switchyard::StepBalance balance(config, {.num_layers = 1, .num_experts = 2, .num_chosen = 1}, plan, state);
  const at::Tensor segment_T = at::zeros({kTokens}, at::kLong);
  for (int64_t forward = 0; forward < 2; ++forward) {
    at::Tensor probs_TE = at::zeros({kTokens, 2});
    probs_TE.select(1, forward).fill_(1.0);
    probs_TE = balance.through_probs(forward, 0, probs_TE.requires_grad_(), segment_T);
    const at::Tensor ids_TK = at::full({kTokens, 1}, forward, at::kLong);
    switchyard::Routing routing = switchyard::routing_from_top_k(ids_TK, at::ones({kTokens, 1}), 2);
    routing.probs_TE = probs_TE;
    balance.record(forward, 0, routing, segment_T);
    balance.close_forward(forward);
  }
  balance.close_counting();
  return balance.values().lbl_L.at(0);
}

}  // namespace

int main() {
  const double wide = loss_of("optimizer_batch");
  const double narrow = loss_of("micro_batch");
  std::cout << "optimizer_batch " << wide << ", micro_batch " << narrow << ", steps " << switchyard::RunConfig().steps << "\n";
  return std::abs(wide - 1.0) < 1e-12 && std::abs(narrow - 2.0) < 1e-12 ? 0 : 1;
}
