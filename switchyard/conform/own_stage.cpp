#include "switchyard/conform/own_stage.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "switchyard/conform/textbook.hpp"

namespace switchyard::conform {
namespace {

at::Tensor int_tensor(const std::vector<int64_t>& values, c10::IntArrayRef sizes) {
  at::Tensor result = at::empty(sizes, at::kLong);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

bool joins_ranks(const BalanceCase& step) {
  const ScopeKind kind = step.subject.scope.kind;
  if (step.subject.method == "lbl" && (kind == ScopeKind::Ranks || kind == ScopeKind::Prefix)) return true;
  if (step.subject.method == "lbl" && kind == ScopeKind::MicroBatch) return false;
  std::map<int64_t, int64_t> rank_of;
  return std::any_of(step.tokens.begin(), step.tokens.end(), [&rank_of](const CaseToken& token) {
    return token.valid() && rank_of.emplace(token.segment, token.rank).first->second != token.rank;
  });
}

BalanceConfig config_of(const BalanceCase& step, int64_t stage_layers) {
  const bool is_z_loss = step.subject.method == "z_loss";
  BalanceConfig config;
  config.method = is_z_loss ? "none" : step.subject.method;
  config.scope = step.subject.scope;
  config.coefficient = is_z_loss ? 0.0 : step.coefficient;
  config.z_coefficient = is_z_loss ? step.coefficient : 0.0;
  config.weighting = step.weighting;
  config.layers = step.layers;
  if (stage_layers != step.num_layers) {  // a stage does not know how many layers the model has
    config.layers = LayerReduction::Sum;
    (is_z_loss ? config.z_coefficient : config.coefficient) = layer_coefficient(step);
  }
  return config;
}

}  // namespace

Partition partition_of(const BalanceCase& step) {
  Partition partition;
  partition.parts = joins_ranks(step) ? 1 : step.num_ranks;
  StepPlan& plan = partition.plan;
  plan.step = 1;
  plan.contract = {.micro_batches = step.contract.micro_batches, .ranks = Averaging::Sum};
  plan.num_micro_batches = step.num_micro_batches * partition.parts;
  plan.forward_begin = {0};
  for (int64_t number = 0; number < plan.num_micro_batches; ++number) {
    Forward forward;
    std::vector<int64_t> segment_T;
    std::map<int64_t, int64_t> local;  // segments by first token
    const int64_t begin = plan.num_segments();
    for (int64_t index = 0; index < step.num_tokens(); ++index) {
      const CaseToken& token = step.token(index);
      const int64_t rank = partition.parts == 1 ? 0 : token.rank;
      if (token.micro_batch * partition.parts + rank != number) continue;
      forward.tokens.push_back(index);
      segment_T.push_back(kPadding);
      if (!token.valid()) continue;
      segment_T.back() = local.emplace(token.segment, static_cast<int64_t>(local.size())).first->second;
      if (begin + segment_T.back() == plan.num_segments()) {
        plan.segment_tokens.push_back(0);
        plan.segment_micro_batch.push_back(number);
      }
      ++plan.segment_tokens[static_cast<size_t>(begin + segment_T.back())];
    }
    plan.forward_begin.push_back(plan.num_segments());
    forward.segment_T = int_tensor(segment_T, {static_cast<int64_t>(segment_T.size())});
    partition.forwards.push_back(forward);
  }
  for (size_t f = 0; f < partition.forwards.size(); ++f) {
    double& weight = partition.forwards[f].caller_weight;
    if (plan.contract.micro_batches == Averaging::Mean) weight = 1.0 / static_cast<double>(plan.num_micro_batches);
    if (plan.contract.micro_batches != Averaging::ByTokens) continue;
    const auto first = plan.segment_tokens.begin() + plan.forward_begin[f];
    const auto end = plan.segment_tokens.begin() + plan.forward_begin[f + 1];
    weight = static_cast<double>(std::accumulate(first, end, int64_t{0})) /
             static_cast<double>(std::max<int64_t>(plan.step_tokens(), 1));
  }
  return partition;
}

Stage::Stage(const BalanceCase& step, std::vector<int64_t> layers, const BalanceState& state)
    : step_(step),
      layers_(std::move(layers)),
      partition_(partition_of(step)),
      config_(config_of(step, static_cast<int64_t>(layers_.size()))),
      state_(state),
      shape_{
          .num_layers = static_cast<int64_t>(layers_.size()), .num_experts = step.num_experts, .num_chosen = step.num_chosen},
      balance_(config_, shape_, partition_.plan, state),
      passed_(partition_.forwards.size() * layers_.size()) {}

at::Tensor Stage::rows_of(const std::vector<double>& values_LTE, size_t forward, size_t slot) const {
  const std::vector<int64_t>& tokens = partition_.forwards[forward].tokens;
  at::Tensor rows_TE = at::zeros({static_cast<int64_t>(tokens.size()), step_.num_experts}, at::kDouble);
  if (values_LTE.empty()) return rows_TE;
  const auto width = static_cast<size_t>(step_.num_experts);
  double* into = rows_TE.mutable_data_ptr<double>();
  for (const int64_t token : tokens) {
    into = std::copy_n(values_LTE.data() + step_.row(layers_[slot], token) * width, width, into);
  }
  return rows_TE;
}

Routing Stage::routing_of(const Passed& passed, size_t forward, size_t slot) const {
  const std::vector<int64_t>& tokens = partition_.forwards[forward].tokens;
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  std::vector<int64_t> ids;
  std::map<std::pair<int64_t, int64_t>, bool> kept;  // by (token of the forward, expert)
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t token = tokens[static_cast<size_t>(t)];
    const std::vector<int64_t> chosen = chosen_K(step_, layers_[slot], token);
    for (size_t k = 0; k < chosen.size(); ++k) {
      ids.push_back(step_.token(token).valid() ? chosen[k] : -1);
      if (step_.dropped_LTK.empty()) continue;
      kept[{t, chosen[k]}] = !step_.dropped_LTK[step_.row(layers_[slot], token) * chosen.size() + k];
    }
  }
  const at::Tensor ids_TK = int_tensor(ids, {num_tokens, step_.num_chosen});
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

Stage::Passed Stage::pass(StepBalance& balance, size_t forward, size_t slot) const {
  const auto f = static_cast<int64_t>(forward);
  const auto layer = static_cast<int64_t>(slot);
  const at::Tensor& segment_T = partition_.forwards[forward].segment_T;
  const bool whole = step_.wiring == Wiring::Whole;
  Passed passed;
  passed.logits_TE = rows_of(step_.logits_LTE, forward, slot).set_requires_grad(true);
  passed.task_TE = rows_of(step_.task_LTE, forward, slot).masked_fill(segment_T.lt(0).unsqueeze(1), 0.0);
  const at::Tensor logits_TE = whole ? balance.through_logits(f, layer, passed.logits_TE, segment_T) : passed.logits_TE;
  passed.probs_TE = at::softmax(logits_TE, -1);
  if (whole) passed.probs_TE = balance.through_probs(f, layer, passed.probs_TE, segment_T);
  balance.record(f, layer, routing_of(passed, forward, slot), segment_T);
  return passed;
}

// A layer that runs again has its first run without a graph, as under activation recomputation.
void Stage::run_forward(size_t forward) {
  for (size_t slot = 0; slot < layers_.size(); ++slot) {
    const at::AutoGradMode grad_mode(step_.runs(layers_[slot]) == 1);
    passed_[forward * layers_.size() + slot] = pass(balance_, forward, slot);
  }
  balance_.close_forward(static_cast<int64_t>(forward));
  if (step_.evaluation == Evaluation::AfterEachMicroBatch) evaluate(forward);
}

// The same tokens, sent elsewhere, without training: as much trace as an evaluation could leave.
void Stage::evaluate(size_t forward) const {
  const at::NoGradGuard no_grad;
  BalanceCase other = step_;
  std::reverse(other.logits_LTE.begin(), other.logits_LTE.end());
  const Stage stage(other, layers_, state_);
  StepBalance balance(without_loss(config_), shape_, partition_.plan, state_);
  for (size_t f = 0; f <= forward; ++f) {
    for (size_t slot = 0; slot < layers_.size(); ++slot) static_cast<void>(stage.pass(balance, f, slot));
    balance.close_forward(static_cast<int64_t>(f));
  }
}

void Stage::backward(size_t forward, size_t slot, Outcome& outcome) {
  const Forward& run = partition_.forwards[forward];
  const auto width = static_cast<size_t>(step_.num_experts);
  Passed& passed = passed_[forward * layers_.size() + slot];
  for (int64_t again = 1; again < step_.runs(layers_[slot]); ++again) passed = pass(balance_, forward, slot);
  const double enlarged = run.caller_weight > 0 ? 1.0 / run.caller_weight : 0.0;
  outcome.task_loss += passed.probs_TE.detach().mul(passed.task_TE).sum().item<double>();
  const at::Tensor gradient_TE =
      torch::autograd::grad({passed.probs_TE}, {passed.logits_TE}, {passed.task_TE.mul(enlarged)})[0];
  const at::Tensor host_TE = gradient_TE.mul(run.caller_weight).contiguous();
  const double* from = host_TE.const_data_ptr<double>();
  for (const int64_t token : run.tokens) {
    std::copy_n(from, width, outcome.gradient_LTE.data() + step_.row(layers_[slot], token) * width);
    from += width;
  }
}

void Stage::run(Outcome& outcome) {
  for (size_t forward = 0; forward < partition_.forwards.size(); ++forward) run_forward(forward);
  balance_.close_counting();
  // The last forward first: the order of backwards must not matter.
  for (size_t forward = partition_.forwards.size(); forward-- > 0;) {
    for (size_t slot = layers_.size(); slot-- > 0;) backward(forward, slot, outcome);
  }
}

}  // namespace switchyard::conform
