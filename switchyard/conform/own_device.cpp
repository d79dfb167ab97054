#include "switchyard/conform/own_device.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>

#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

// Ranks that hold tokens of one segment belong together: the lowest of each such set, by rank.
std::vector<int64_t> data_ranks(const BalanceCase& step) {
  std::vector<int64_t> set_of(static_cast<size_t>(step.num_ranks));
  std::iota(set_of.begin(), set_of.end(), int64_t{0});
  std::map<int64_t, int64_t> first_rank_of;
  for (const CaseToken& token : step.tokens) {
    if (!token.valid()) continue;
    const int64_t first = first_rank_of.emplace(token.segment, token.rank).first->second;
    const int64_t low = set_of[static_cast<size_t>(first)];
    const int64_t high = set_of[static_cast<size_t>(token.rank)];
    std::replace(set_of.begin(), set_of.end(), std::max(low, high), std::min(low, high));
  }
  return set_of;
}

std::optional<SelectionRule> rule_of(const Subject& subject) {
  if (subject.method == "bias") return SelectionRule::Bias;
  if (subject.method == "bias_centered") return SelectionRule::BiasCentered;
  if (subject.method == "quantile") return SelectionRule::Quantile;
  return std::nullopt;
}

BalanceConfig config_of(const BalanceCase& step) {
  BalanceConfig config;
  config.scope = step.subject.scope;
  config.weighting = step.weighting;
  config.layers = step.layers;
  config.method = "none";
  config.coefficient = 0.0;
  if (const std::optional<SelectionRule> rule = rule_of(step.subject)) {
    config.selection.rule = *rule;
  } else if (step.subject.method == "z_loss") {
    config.z_coefficient = step.coefficient;
  } else if (step.subject.method == "token_loss") {
    config.orthogonality_coefficient = step.coefficient;
  } else if (step.subject.method == "mixed_lbl") {
    config.method = "lbl";
    config.coefficient = 0.01 * step.coefficient;
    config.terms = {{.method = "lbl", .scope = {.kind = ScopeKind::OptimizerBatch}, .coefficient = step.coefficient}};
  } else {
    config.method = step.subject.method;
    config.coefficient = step.coefficient;
  }
  return config;
}

}  // namespace

std::vector<DeviceShare> shares_of_stage(const BalanceCase& step, int64_t stage) {
  const DeviceGrid grid = step.devices();
  const std::vector<int64_t> data_rank_of = data_ranks(step);
  std::vector<DeviceShare> shares;
  for (int64_t device = 0; device < num_devices(grid); ++device) {
    const DevicePlace place = place_of(grid, device);
    if (place.pipeline != stage) continue;
    const int64_t rank = shard_of(grid, device);
    const int64_t replica = grid.tensor_tokens == TensorTokens::Replicated ? place.tensor : 0;
    shares.push_back({.layers = layers_of_stage(grid, stage, step.num_layers),
                      .rank = rank,
                      .ranks = {.data_rank = data_rank_of[static_cast<size_t>(rank)], .replica = replica}});
  }
  return shares;
}

// Every rank of a data rank plans all its segments, with the tokens that it holds of each.
StepPlan OwnDevice::make_plan() {
  const std::vector<int64_t> data_rank_of = data_ranks(step_);
  StepPlan plan{.step = 1, .forward_begin = {0}, .contract = step_.contract, .num_micro_batches = step_.num_micro_batches};
  for (int64_t m = 0; m < step_.num_micro_batches; ++m) {
    Forward forward;
    std::vector<int64_t> segment_T;
    std::map<int64_t, int64_t> local;  // segments by first token
    for (int64_t index = 0; index < step_.num_tokens(); ++index) {
      const CaseToken& token = step_.token(index);
      if (token.micro_batch != m || data_rank_of[static_cast<size_t>(token.rank)] != share_.ranks.data_rank) continue;
      if (token.valid() && local.emplace(token.segment, static_cast<int64_t>(local.size())).second) {
        plan.segment_tokens.push_back(0);
        plan.segment_micro_batch.push_back(m);
        plan.segment_domain.push_back(token.domain());
      }
      if (token.rank != share_.rank) continue;
      forward.tokens.push_back(index);
      segment_T.push_back(token.valid() ? local[token.segment] : kPadding);
      if (token.valid()) ++plan.segment_tokens[static_cast<size_t>(plan.forward_begin.back() + segment_T.back())];
    }
    plan.forward_begin.push_back(plan.num_segments());
    forward.segment_T = at::tensor(segment_T, at::kLong);
    forwards_.push_back(forward);
  }
  return plan;
}

StepBalance OwnDevice::make_balance(const BalanceConfig& config, const BalanceState& state) const {
  const BalanceShape shape{.num_layers = static_cast<int64_t>(share_.layers.size()),
                           .num_experts = step_.num_experts,
                           .num_chosen = step_.num_chosen,
                           .total_layers = step_.num_layers};
  if (comm_ == nullptr) return {config, shape, plan_, state};
  return {config, shape, plan_, state, BalanceRanks{*comm_, share_.ranks}};
}

OwnDevice::OwnDevice(const BalanceCase& step, DeviceShare share, const BalanceState& state, Communicator* comm)
    : step_(step),
      share_(std::move(share)),
      comm_(comm),
      config_(config_of(step)),
      plan_(make_plan()),
      state_(state),
      balance_(make_balance(config_, state)),
      passed_(forwards_.size() * share_.layers.size()) {}

at::Tensor OwnDevice::rows_of(const std::vector<double>& values_LTE, size_t forward, size_t slot) const {
  const std::vector<int64_t>& tokens = forwards_[forward].tokens;
  at::Tensor rows_TE = at::zeros({static_cast<int64_t>(tokens.size()), step_.num_experts}, at::kDouble);
  if (values_LTE.empty()) return rows_TE;
  const auto width = static_cast<size_t>(step_.num_experts);
  double* into = rows_TE.mutable_data_ptr<double>();
  for (const int64_t token : tokens) {
    into = std::copy_n(values_LTE.data() + step_.row(share_.layers[slot], token) * width, width, into);
  }
  return rows_TE;
}

Routing OwnDevice::routing_of(const Passed& passed, size_t forward, size_t slot) const {
  const std::vector<int64_t>& tokens = forwards_[forward].tokens;
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  std::vector<int64_t> ids;
  std::map<std::pair<int64_t, int64_t>, bool> kept;  // by (token of the forward, expert)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t token = tokens[static_cast<size_t>(t)];
    const std::vector<int64_t> chosen = chosen_K(step_, share_.layers[slot], token);
    for (size_t k = 0; k < chosen.size(); ++k) {
      ids.push_back(step_.token(token).valid() ? chosen[k] : -1);
      if (step_.dropped_LTK.empty()) continue;
      kept[{t, chosen[k]}] = !step_.dropped_LTK[step_.row(share_.layers[slot], token) * chosen.size() + k];
    }
  }
  const at::Tensor ids_TK = at::tensor(ids, at::kLong).view({num_tokens, step_.num_chosen});
  Routing routing = routing_from_top_k(ids_TK, passed.probs_TE.gather(1, ids_TK.clamp_min(0)), step_.num_experts);
  routing.logits_TE = passed.logits_TE;
  routing.probs_TE = passed.probs_TE;
  if (kept.empty()) return routing;
  routing.kept_A = at::empty({routing.token_A.numel()}, at::kBool);
  for (int64_t a = 0; a < routing.kept_A.numel(); ++a) {
    routing.kept_A.mutable_data_ptr<bool>()[a] =
        kept[{routing.token_A.const_data_ptr<int64_t>()[a], routing.expert_A.const_data_ptr<int64_t>()[a]}];
  }
  return routing;
}

OwnDevice::Passed OwnDevice::pass(StepBalance& balance, size_t forward, size_t slot) const {
  const auto f = static_cast<int64_t>(forward);
  const auto layer = static_cast<int64_t>(slot);
  const at::Tensor& segment_T = forwards_[forward].segment_T;
  const bool passes = step_.wiring != Wiring::RouterPassesNothing;
  const auto goes_on_with = [this](const at::Tensor& before, const at::Tensor& after) {
    return step_.wiring == Wiring::RouterDropsResult ? before : after;
  };
  Passed passed;
  passed.logits_TE = rows_of(step_.logits_LTE, forward, slot).set_requires_grad(true);
  passed.task_TE = rows_of(step_.task_LTE, forward, slot).masked_fill(segment_T.lt(0).unsqueeze(1), 0.0);
  at::Tensor logits_TE = passed.logits_TE;
  if (passes) logits_TE = goes_on_with(logits_TE, balance.through_logits(f, layer, logits_TE, segment_T));
  passed.probs_TE = at::softmax(logits_TE, -1);
  if (passes) passed.probs_TE = goes_on_with(passed.probs_TE, balance.through_probs(f, layer, passed.probs_TE, segment_T));
  if (passes && balance.wants_outputs()) {
    passed.probs_TE = goes_on_with(passed.probs_TE, balance.through_outputs(f, layer, passed.probs_TE,
                                                                            passed.probs_TE.square().sum(-1), segment_T));
  }
  balance.record(f, layer, routing_of(passed, forward, slot), segment_T);
  return passed;
}

// A layer that runs again has its first run without a graph, as under activation recomputation.
void OwnDevice::run_forward(size_t forward) {
  for (size_t slot = 0; slot < share_.layers.size(); ++slot) {
    const at::AutoGradMode grad_mode(step_.runs(share_.layers[slot]) == 1);
    passed_[forward * share_.layers.size() + slot] = pass(balance_, forward, slot);
  }
  balance_.close_forward(static_cast<int64_t>(forward));
  balance_.await_forward(static_cast<int64_t>(forward));
  if (step_.evaluation == Evaluation::AfterEachMicroBatch) evaluate(forward);
}

// The same tokens, sent elsewhere, without training: as much trace as an evaluation could leave.
void OwnDevice::evaluate(size_t forward) const {
  const at::NoGradGuard no_grad;
  BalanceCase other = step_;
  std::reverse(other.logits_LTE.begin(), other.logits_LTE.end());
  const OwnDevice device(other, share_, state_, comm_);
  StepBalance balance = make_balance(without_loss(config_), state_);
  for (size_t f = 0; f <= forward; ++f) {
    for (size_t slot = 0; slot < share_.layers.size(); ++slot) static_cast<void>(device.pass(balance, f, slot));
    balance.close_forward(static_cast<int64_t>(f));
    balance.await_forward(static_cast<int64_t>(f));
  }
}

void OwnDevice::backward(size_t forward, size_t slot, Outcome& outcome) {
  const std::vector<int64_t>& tokens = forwards_[forward].tokens;
  const auto width = static_cast<size_t>(step_.num_experts);
  Passed& passed = passed_[forward * share_.layers.size() + slot];
  for (int64_t again = 1; again < step_.runs(share_.layers[slot]); ++again) passed = pass(balance_, forward, slot);
  const double weight = caller_weight(step_, static_cast<int64_t>(forward), share_.rank);
  const double enlarged = weight > 0 ? 1.0 / weight : 0.0;
  outcome.task_loss += passed.probs_TE.detach().mul(passed.task_TE).sum().item<double>();
  const at::Tensor gradient_TE =
      torch::autograd::grad({passed.probs_TE}, {passed.logits_TE}, {passed.task_TE.mul(enlarged)})[0];
  const at::Tensor host_TE = gradient_TE.mul(weight).contiguous();
  const double* from = host_TE.const_data_ptr<double>();
  for (const int64_t token : tokens) {
    std::copy_n(from, width, outcome.gradient_LTE.data() + step_.row(share_.layers[slot], token) * width);
    from += width;
  }
}

void OwnDevice::take_numbers(Outcome& outcome) {
  const at::Tensor counts_LE = balance_.step_counts_LE().contiguous();
  const int64_t* counts = counts_LE.const_data_ptr<int64_t>();
  outcome.step_counts_LE.assign(counts, counts + counts_LE.numel());
  const at::Tensor parts_MLE = balance_.micro_batch_counts_MLE();
  const int64_t parts = parts_MLE.size(0) / step_.num_micro_batches;  // data ranks
  for (int64_t m = 0; m < step_.num_micro_batches; ++m) {
    const at::Tensor sum_LE = parts_MLE.narrow(0, m * parts, parts).sum(0).contiguous();
    const int64_t* sums = sum_LE.const_data_ptr<int64_t>();
    outcome.micro_counts_MLE.emplace_back(sums, sums + sum_LE.numel());
  }
  const BalanceValues values = balance_.values();
  outcome.weighted_loss = values.weighted_loss;
  outcome.value_L = values.z_loss_L.empty() ? values.orthogonality_L : values.z_loss_L;
  if (!values.terms.empty()) outcome.value_L = values.terms.front().value_L;
  if (!rule_of(step_.subject)) return;
  BalanceState after = state_;  // of a rule there is no loss; what it leaves is its value
  finish(after);
  if (!after.selection_offsets_LE.defined()) return;  // nothing but padding so far
  const at::Tensor offsets_LE = after.selection_offsets_LE.to(at::kDouble).contiguous();
  const double* offsets = offsets_LE.const_data_ptr<double>();
  outcome.value_L.assign(offsets, offsets + offsets_LE.numel());
}

// All that a new process has of the old one.
void OwnDevice::stop_and_resume() {
  const StepProgress saved = balance_.progress();
  balance_ = make_balance(config_, state_);
  balance_.resume(saved);
}

// Forward and backward of each micro-batch, then a stop; where coefficients need the whole step, a counting pass ahead of it
// with its own stops.
void OwnDevice::run_with_stops(Outcome& outcome) {
  const bool counts_ahead = balance_.needs_whole_step();
  const auto backward_all = [&](size_t forward) {
    for (size_t slot = 0; slot < share_.layers.size(); ++slot) backward(forward, slot, outcome);
  };
  for (size_t forward = 0; forward < forwards_.size(); ++forward) {
    run_forward(forward);
    if (!counts_ahead) backward_all(forward);
    stop_and_resume();
  }
  balance_.close_counting();
  for (size_t forward = 0; counts_ahead && forward < forwards_.size(); ++forward) {
    stop_and_resume();
    balance_.close_counting();
    for (size_t slot = 0; slot < share_.layers.size(); ++slot) {
      passed_[forward * share_.layers.size() + slot] = pass(balance_, forward, slot);
    }
    backward_all(forward);
  }
}

void OwnDevice::run(Outcome& outcome) {
  outcome.gradient_LTE.assign(step_.logits_LTE.size(), 0.0);
  if (step_.interruption == Interruption::AfterEachMicroBatch) {
    run_with_stops(outcome);
    take_numbers(outcome);
    return;
  }
  for (size_t forward = 0; forward < forwards_.size(); ++forward) run_forward(forward);
  balance_.close_counting();
  // The last forward first: the order of backwards must not matter.
  for (size_t forward = forwards_.size(); forward-- > 0;) {
    for (size_t slot = share_.layers.size(); slot-- > 0;) backward(forward, slot, outcome);
  }
  take_numbers(outcome);
}

}  // namespace switchyard::conform
