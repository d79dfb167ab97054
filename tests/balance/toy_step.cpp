#include "toy_step.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scatter.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cctype>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard::toy {
namespace {

struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
};

at::Tensor leaf(const at::Tensor& values) { return values.detach().clone().set_requires_grad(true); }

at::Tensor random_double(Rng& rng, c10::IntArrayRef sizes) { return rng.normal_tensor(sizes, 1.0).to(at::kDouble); }

at::Tensor int_tensor(const std::vector<int64_t>& values) {
  at::Tensor result = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

// Micro-batches [first, last) of each forward.
std::vector<TokenRange> micro_batches_of_forwards(const Layout& layout, Partition partition) {
  const int64_t each = partition == Partition::Together ? layout.num_micro_batches : partition == Partition::Pairs ? 2 : 1;
  std::vector<TokenRange> forwards;
  for (int64_t first = 0; first < layout.num_micro_batches; first += each) {
    forwards.push_back({first, std::min(first + each, layout.num_micro_batches)});
  }
  return forwards;
}

// Segments of the forward by its own numbering, for tokens [begin, end).
at::Tensor local_segments(const Layout& layout, const TokenRange& tokens, int64_t first_segment) {
  std::vector<int64_t> local;
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    const int64_t segment = layout.segment_T[static_cast<size_t>(token)];
    local.push_back(segment < 0 ? -1 : segment - first_segment);
  }
  return int_tensor(local);
}

// Token range of each forward of the plan: forwards hold whole micro-batches, so borders lie between micro-batches.
std::vector<TokenRange> tokens_of_forwards(const Layout& layout, int64_t num_forwards) {
  const int64_t each = (layout.num_micro_batches + num_forwards - 1) / num_forwards;
  std::vector<TokenRange> ranges(static_cast<size_t>(num_forwards));
  for (int64_t forward = 0; forward < num_forwards; ++forward) {
    const auto lower = std::lower_bound(layout.micro_batch_T.begin(), layout.micro_batch_T.end(), forward * each);
    const auto upper = std::lower_bound(layout.micro_batch_T.begin(), layout.micro_batch_T.end(), (forward + 1) * each);
    ranges[static_cast<size_t>(forward)] = {lower - layout.micro_batch_T.begin(), upper - layout.micro_batch_T.begin()};
  }
  return ranges;
}

void add_to(Gradients& sum, const Gradients& part, double weight) {
  if (!sum.hidden_TD.defined()) {
    sum.hidden_TD = at::zeros_like(part.hidden_TD);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      sum.router_LED.push_back(at::zeros_like(part.router_LED[static_cast<size_t>(layer)]));
      sum.logits_LTE.push_back(at::zeros_like(part.logits_LTE[static_cast<size_t>(layer)]));
    }
  }
  sum.hidden_TD.add_(part.hidden_TD, weight);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    sum.router_LED[layer].add_(part.router_LED[layer], weight);
    sum.logits_LTE[layer].add_(part.logits_LTE[layer], weight);
  }
}

// The weight that the caller gives to a forward's gradients after its backward.
double caller_weight(const Layout& layout, const StepPlan& plan, const TokenRange& tokens) {
  if (plan.contract.micro_batches == Averaging::Sum) return 1.0;
  if (plan.contract.micro_batches == Averaging::Mean) return 1.0 / static_cast<double>(layout.num_micro_batches);
  const int64_t valid = std::count_if(layout.segment_T.begin() + tokens.begin, layout.segment_T.begin() + tokens.end,
                                      [](int64_t segment) { return segment >= 0; });
  return static_cast<double>(valid) / static_cast<double>(layout.num_valid());
}

}  // namespace

int64_t Layout::num_valid() const { return std::accumulate(segment_tokens.begin(), segment_tokens.end(), int64_t{0}); }

std::vector<int64_t> Layout::micro_batch_tokens() const {
  std::vector<int64_t> tokens_M(static_cast<size_t>(num_micro_batches), 0);
  for (size_t segment = 0; segment < segment_tokens.size(); ++segment) {
    tokens_M[static_cast<size_t>(segment_micro_batch[segment])] += segment_tokens[segment];
  }
  return tokens_M;
}

Layout make_layout(const std::vector<std::vector<int64_t>>& segments) {
  Layout layout;
  for (const std::vector<int64_t>& lengths : segments) {
    for (const int64_t length : lengths) {
      int64_t label = -1;
      if (length >= 0) {
        label = static_cast<int64_t>(layout.segment_tokens.size());
        layout.segment_tokens.push_back(length);
        layout.segment_micro_batch.push_back(layout.num_micro_batches);
      }
      const auto num_tokens = static_cast<size_t>(std::abs(length));
      layout.segment_T.insert(layout.segment_T.end(), num_tokens, label);
      layout.micro_batch_T.insert(layout.micro_batch_T.end(), num_tokens, layout.num_micro_batches);
    }
    ++layout.num_micro_batches;
  }
  return layout;
}

Layout uneven_layout() { return make_layout({{6, 2, -2, 3}, {1, -3}, {-4}, {5, 0, 7}, {4, 4, -1}}); }

ToyModel make_model(uint64_t seed, int64_t num_tokens) {
  Rng rng(seed, "toy");
  ToyModel model;
  model.hidden_TD = leaf(random_double(rng, {num_tokens, kWidth}));
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    model.router_LED.push_back(leaf(random_double(rng, {kExperts, kWidth})));
    model.mix_LED.push_back(random_double(rng, {kExperts, kWidth}));
    model.offset_LTE.push_back(leaf(at::zeros({num_tokens, kExperts}, at::kDouble)));
  }
  return model;
}

at::Tensor forward_loss(const ToyModel& model, const Layout& layout, int64_t begin, int64_t end, const Hooks& hooks) {
  const int64_t num_tokens = end - begin;
  at::Tensor valid_T = at::empty({num_tokens}, at::kBool);
  for (int64_t token = 0; token < num_tokens; ++token) {
    valid_T.mutable_data_ptr<bool>()[token] = layout.segment_T[static_cast<size_t>(begin + token)] >= 0;
  }
  at::Tensor hidden_TD = model.hidden_TD.narrow(0, begin, num_tokens);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto l = static_cast<size_t>(layer);
    at::Tensor logits_TE = at::linear(hidden_TD, model.router_LED[l]).add(model.offset_LTE[l].narrow(0, begin, num_tokens));
    if (hooks.logits) logits_TE = hooks.logits(layer, logits_TE);
    at::Tensor probs_TE = at::softmax(logits_TE, -1);
    if (hooks.probs) probs_TE = hooks.probs(layer, probs_TE);
    const at::Tensor ids_TK = std::get<1>(at::topk(probs_TE.detach(), kChosen, -1));
    const at::Tensor weights_TK = probs_TE.gather(1, ids_TK);
    Routing routing = routing_from_top_k(ids_TK.masked_fill(valid_T.logical_not().unsqueeze(1), -1), weights_TK, kExperts);
    routing.logits_TE = logits_TE;
    routing.probs_TE = probs_TE;
    if (hooks.routed) hooks.routed(layer, routing);
    const at::Tensor dense_TE = at::zeros_like(probs_TE.detach()).scatter(1, ids_TK, weights_TK);
    hidden_TD = hidden_TD.add(dense_TE.mm(model.mix_LED[l])).tanh();
  }
  return hidden_TD.mul(model.mix_LED[0].select(0, 0)).sum(1).masked_fill(valid_T.logical_not(), 0.0).sum();
}

Gradients gradients_of(const at::Tensor& loss, const ToyModel& model) {
  std::vector<at::Tensor> leaves = {model.hidden_TD};
  leaves.insert(leaves.end(), model.router_LED.begin(), model.router_LED.end());
  leaves.insert(leaves.end(), model.offset_LTE.begin(), model.offset_LTE.end());
  std::vector<at::Tensor> grads = torch::autograd::grad({loss}, leaves, {}, /*retain_graph=*/std::nullopt,
                                                        /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) grads[i] = at::zeros_like(leaves[i].detach());
  }
  return {grads[0], {grads.begin() + 1, grads.begin() + 1 + kLayers}, {grads.begin() + 1 + kLayers, grads.end()}};
}

StepPlan plan_of(const Layout& layout, Partition partition, Averaging contract) {
  StepPlan plan{.step = 7,
                .segment_tokens = layout.segment_tokens,
                .segment_micro_batch = layout.segment_micro_batch,
                .forward_begin = {0},
                .segment_rank = layout.segment_rank,
                .segment_domain = layout.segment_domain,
                .contract = {.micro_batches = contract, .ranks = Averaging::Sum},
                .num_micro_batches = layout.num_micro_batches};
  for (const TokenRange& forward : micro_batches_of_forwards(layout, partition)) {
    const auto end = std::lower_bound(plan.segment_micro_batch.begin(), plan.segment_micro_batch.end(), forward.end);
    plan.forward_begin.push_back(end - plan.segment_micro_batch.begin());
  }
  return plan;
}

BalanceShape toy_shape() { return {.num_layers = kLayers, .num_experts = kExperts, .num_chosen = kChosen}; }

StepResult run_step(const ToyModel& model, const Layout& layout, const BalanceConfig& config, const StepPlan& plan,
                    const BalanceState& state, Order order, const RankSide& side) {
  StepBalance balance = side.ranks == nullptr ? StepBalance(config, toy_shape(), plan, state)
                                              : StepBalance(config, toy_shape(), plan, state, *side.ranks);
  const std::vector<TokenRange> ranges = tokens_of_forwards(layout, plan.num_forwards());
  const int64_t step_tokens = side.step_tokens == 0 ? layout.num_valid() : side.step_tokens;
  const auto num_valid = static_cast<double>(std::max<int64_t>(step_tokens, 1));
  StepResult result;
  const auto run_forward = [&](int64_t forward) {
    const TokenRange tokens = ranges[static_cast<size_t>(forward)];
    const at::Tensor segment_T = local_segments(layout, tokens, plan.segments(forward).begin);
    const Hooks hooks = {
        .logits = [&](int64_t l, const at::Tensor& logits) { return balance.through_logits(forward, l, logits, segment_T); },
        .probs = [&](int64_t l, const at::Tensor& probs) { return balance.through_probs(forward, l, probs, segment_T); },
        .routed = [&](int64_t l, const Routing& routing) { balance.record(forward, l, routing, segment_T); }};
    // Enlarged so that, after the caller's averaging, the mean over the step's valid tokens is what remains.
    const double weight = caller_weight(layout, plan, tokens) * side.caller_weight;
    const at::Tensor loss =
        forward_loss(model, layout, tokens.begin, tokens.end, hooks).mul(weight > 0 ? 1.0 / (weight * num_valid) : 0.0);
    balance.close_forward(forward);
    balance.await_forward(forward);
    return loss;
  };
  const auto run_backward = [&](int64_t forward, const at::Tensor& loss) {
    const double weight = caller_weight(layout, plan, ranges[static_cast<size_t>(forward)]) * side.caller_weight;
    add_to(result.gradients, gradients_of(loss, model), weight);
  };

  if (order == Order::Prepass) {
    const at::NoGradGuard no_grad;
    for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) static_cast<void>(run_forward(forward));
    balance.close_counting();
  }
  std::vector<at::Tensor> losses;
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    losses.push_back(run_forward(forward));
    if (order != Order::Retain) run_backward(forward, losses.back());
  }
  if (order != Order::Prepass) balance.close_counting();
  // The last forward first: the order of backwards must not matter.
  for (int64_t forward = plan.num_forwards() - 1; order == Order::Retain && forward >= 0; --forward) {
    run_backward(forward, losses[static_cast<size_t>(forward)]);
  }

  result.values = balance.values();
  result.counts_LE = balance.step_counts_LE();
  result.micro_batch_counts_MLE = balance.micro_batch_counts_MLE();
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    for (int64_t layer = 0; layer < kLayers; ++layer) result.coefficients.push_back(balance.coefficients_SE(forward, layer));
  }
  result.state = state;
  balance.finish(result.state);
  return result;
}

double max_abs_difference(const at::Tensor& a, const at::Tensor& b) {
  SWITCHYARD_CHECK(a.sizes() == b.sizes(), ShapeError, "compared shapes ", a.sizes(), " and ", b.sizes());
  return a.numel() == 0 ? 0.0 : a.sub(b).abs().max().item<double>();
}

double max_difference(const Gradients& a, const Gradients& b) {
  double largest = max_abs_difference(a.hidden_TD, b.hidden_TD);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    largest = std::max(largest, max_abs_difference(a.router_LED[layer], b.router_LED[layer]));
    largest = std::max(largest, max_abs_difference(a.logits_LTE[layer], b.logits_LTE[layer]));
  }
  return largest;
}

BalanceState some_history(uint64_t seed) {
  Rng rng(seed, "history");
  BalanceState state{.previous_counts_LE = at::zeros({kLayers, kExperts}, at::kLong), .ema_fractions_LE = {}};
  for (int64_t i = 0; i < kLayers * kExperts; ++i) {
    state.previous_counts_LE.mutable_data_ptr<int64_t>()[i] = 1 + static_cast<int64_t>(rng.below(20));
  }
  const at::Tensor counts_LE = state.previous_counts_LE.to(at::kDouble);
  state.ema_fractions_LE = counts_LE.div(counts_LE.sum(1, true)).flip(1).contiguous();
  return state;
}

std::vector<Scope> every_scope(const std::vector<int64_t>& numbers_of_sequences) {
  std::vector<Scope> scopes;
  for (const ScopeInfo& info : scope_table()) {
    if (info.kind != ScopeKind::Sequences) {
      scopes.push_back({.kind = info.kind, .decay = info.kind == ScopeKind::Ema ? 0.9 : 0.0});
      continue;
    }
    for (const int64_t number : numbers_of_sequences) scopes.push_back({.kind = info.kind, .num_sequences = number});
  }
  return scopes;
}

std::string test_name(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char letter) { return std::isalnum(static_cast<unsigned char>(letter)) == 0; }, '_');
  return text;
}

}  // namespace switchyard::toy
