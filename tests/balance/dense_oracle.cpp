#include "dense_oracle.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>

#include <set>

namespace switchyard::toy {
namespace {

using Segments = std::set<int64_t>;

struct OracleGroup {
  Segments averaged;
  Segments counted;
  double weight = 0.0;
};

Segments segments_with_tokens(const Layout& layout) {
  Segments found;
  for (const int64_t segment : layout.segment_T) {
    if (segment >= 0) found.insert(segment);
  }
  return found;
}

Segments of_micro_batches(const Layout& layout, int64_t first, int64_t last) {
  Segments found;
  for (size_t token = 0; token < layout.segment_T.size(); ++token) {
    const int64_t micro_batch = layout.micro_batch_T[token];
    if (layout.segment_T[token] >= 0 && micro_batch >= first && micro_batch <= last) found.insert(layout.segment_T[token]);
  }
  return found;
}

int64_t tokens_in(const Layout& layout, const Segments& segments) {
  return std::count_if(layout.segment_T.begin(), layout.segment_T.end(),
                       [&](int64_t segment) { return segments.contains(segment); });
}

std::vector<OracleGroup> oracle_groups(const Layout& layout, const Scope& scope) {
  const Segments all = segments_with_tokens(layout);
  std::vector<OracleGroup> groups;
  if (scope.kind == ScopeKind::Sequence) {
    for (const int64_t segment : all) groups.push_back({{segment}, {segment}});
  } else if (scope.kind == ScopeKind::Sequences) {
    for (const int64_t segment : all) {
      if (groups.empty() || static_cast<int64_t>(groups.back().averaged.size()) == scope.num_sequences) groups.emplace_back();
      groups.back().averaged.insert(segment);
      groups.back().counted.insert(segment);
    }
  } else if (scope.kind == ScopeKind::MicroBatch || scope.kind == ScopeKind::Ranks || scope.kind == ScopeKind::Prefix) {
    for (int64_t m = 0; m < layout.num_micro_batches; ++m) {
      const Segments own = of_micro_batches(layout, m, m);
      if (own.empty()) continue;
      groups.push_back({own, scope.kind == ScopeKind::Prefix ? of_micro_batches(layout, 0, m) : own});
    }
  } else if (!all.empty()) {
    groups.push_back({all, scope.kind == ScopeKind::OptimizerBatch ? all : Segments{}});
  }
  return groups;
}

void weigh(const Layout& layout, const BalanceConfig& config, std::vector<OracleGroup>& groups) {
  if (groups.empty()) return;
  double sum = 0.0;
  for (OracleGroup& group : groups) {
    group.weight = config.weighting == GroupWeighting::Tokens ? static_cast<double>(tokens_in(layout, group.averaged)) : 1.0;
  }
  const auto size = [](const OracleGroup& group) { return static_cast<int64_t>(group.averaged.size()); };
  OracleGroup& last = groups.back();
  if (config.weighting == GroupWeighting::Mean && config.scope.kind == ScopeKind::Sequences && groups.size() > 1 &&
      size(last) < config.scope.num_sequences) {
    double full = 0.0;
    for (size_t g = 0; g + 1 < groups.size(); ++g) full += static_cast<double>(tokens_in(layout, groups[g].averaged));
    last.weight = static_cast<double>(tokens_in(layout, last.averaged)) * static_cast<double>(groups.size() - 1) / full;
  }
  for (const OracleGroup& group : groups) sum += group.weight;
  for (OracleGroup& group : groups) group.weight /= sum;
}

// 1 for the tokens of these segments, double [T, 1].
at::Tensor mask_T1(const Layout& layout, const Segments& segments) {
  at::Tensor mask = at::zeros({layout.num_tokens(), 1}, at::kDouble);
  for (int64_t token = 0; token < layout.num_tokens(); ++token) {
    if (segments.contains(layout.segment_T[static_cast<size_t>(token)])) mask.mutable_data_ptr<double>()[token] = 1.0;
  }
  return mask;
}

// f as a constant: the share of each expert in the K largest probabilities of the counted tokens, or what history says.
at::Tensor constant_fractions_E(const Layout& layout, const OracleGroup& group, const at::Tensor& probs_TE, ScopeKind kind,
                                const BalanceState& history, int64_t layer) {
  if (kind == ScopeKind::Ema) return history.ema_fractions_LE.select(0, layer);
  if (kind == ScopeKind::PreviousStep) {
    const at::Tensor counts_E = history.previous_counts_LE.select(0, layer).to(at::kDouble);
    return counts_E.div(counts_E.sum());
  }
  at::Tensor counts_E = at::zeros({kExperts}, at::kDouble);
  const at::Tensor host_TE = probs_TE.detach().contiguous();
  for (int64_t token = 0; token < layout.num_tokens(); ++token) {
    if (!group.counted.contains(layout.segment_T[static_cast<size_t>(token)])) continue;
    const double* row = host_TE.const_data_ptr<double>() + token * kExperts;
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      const auto better = std::count_if(row, row + kExperts, [&](double other) { return other > row[expert]; });
      if (better < kChosen) counts_E.mutable_data_ptr<double>()[expert] += 1.0;
    }
  }
  return counts_E.div(counts_E.sum());
}

}  // namespace

OracleResult dense_oracle(const ToyModel& model, const Layout& layout, const BalanceConfig& config,
                          const BalanceState& history) {
  std::vector<at::Tensor> logits_L;
  std::vector<at::Tensor> probs_L;
  const Hooks hooks = {.logits = [&](int64_t, const at::Tensor& logits) { return logits_L.emplace_back(logits); },
                       .probs = [&](int64_t, const at::Tensor& probs) { return probs_L.emplace_back(probs); },
                       .routed = {}};
  const auto num_valid = static_cast<double>(std::max<int64_t>(layout.num_valid(), 1));
  const at::Tensor own_loss = forward_loss(model, layout, 0, layout.num_tokens(), hooks).div(num_valid);

  std::vector<OracleGroup> groups = oracle_groups(layout, config.scope);
  weigh(layout, config, groups);
  const bool earlier = config.scope.kind == ScopeKind::PreviousStep || config.scope.kind == ScopeKind::Ema;
  const bool no_history = earlier && !history.previous_counts_LE.defined();
  const double share = config.layers == LayerReduction::Mean ? 1.0 / kLayers : 1.0;
  OracleResult result;
  at::Tensor total = at::zeros({}, at::kDouble);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const at::Tensor& probs_TE = probs_L[static_cast<size_t>(layer)];
    at::Tensor lbl = at::zeros({}, at::kDouble);
    for (const OracleGroup& group : groups) {
      if (no_history) break;
      const at::Tensor mask = mask_T1(layout, group.averaged);
      const at::Tensor mean_E = probs_TE.mul(mask).sum(0).div(mask.sum());
      const at::Tensor fractions_E = constant_fractions_E(layout, group, probs_TE, config.scope.kind, history, layer);
      lbl = lbl.add(fractions_E.mul(mean_E).sum().mul(group.weight * kExperts));
    }
    const at::Tensor all = mask_T1(layout, segments_with_tokens(layout));
    const at::Tensor lse_T1 = at::logsumexp(logits_L[static_cast<size_t>(layer)], {-1}, true);
    const at::Tensor z_loss = lse_T1.square().mul(all).sum().div(num_valid);
    total = total.add(lbl.mul(config.coefficient * share)).add(z_loss.mul(config.z_coefficient * share));
    result.lbl_L.push_back(lbl.item<double>());
    result.z_loss_L.push_back(z_loss.item<double>());
  }
  result.weighted_loss = total.item<double>();
  result.gradients = gradients_of(own_loss.add(total), model);
  return result;
}

}  // namespace switchyard::toy
