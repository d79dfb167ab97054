#include "dense_oracle.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/erf.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <set>

#include "switchyard/core/error.hpp"

namespace switchyard::toy {
namespace {

using Segments = std::set<int64_t>;

constexpr int64_t kMaxRanks = 8;

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

int64_t rank_of(const Layout& layout, int64_t segment) {
  return layout.segment_rank.empty() ? 0 : layout.segment_rank[static_cast<size_t>(segment)];
}

Segments of_rank(const Layout& layout, const Segments& segments, int64_t rank) {
  Segments found;
  std::copy_if(segments.begin(), segments.end(), std::inserter(found, found.end()),
               [&](int64_t segment) { return rank_of(layout, segment) == rank; });
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
      for (int64_t rank = 0; scope.kind == ScopeKind::MicroBatch && rank < kMaxRanks; ++rank) {
        const Segments of_this = of_rank(layout, own, rank);
        if (!of_this.empty()) groups.push_back({of_this, of_this});
      }
      if (scope.kind == ScopeKind::MicroBatch) continue;
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
                                const BalanceState& history, int64_t layer, int64_t num_counted) {
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
      if (better < num_counted) counts_E.mutable_data_ptr<double>()[expert] += 1.0;
    }
  }
  return counts_E.div(counts_E.sum());
}

at::Tensor variation(const at::Tensor& sums_E) { return sums_E.var(/*unbiased=*/false).div(sums_E.mean().square()); }

// One token at a time: the K-th largest of the other experts' logits is the border.
at::Tensor loads_E(const at::Tensor& logits_TE, const at::Tensor& mask_of_T1) {
  at::Tensor sums_E = at::zeros({kExperts}, at::kDouble);
  for (int64_t token = 0; token < logits_TE.size(0); ++token) {
    if (mask_of_T1.const_data_ptr<double>()[token] == 0.0) continue;
    std::vector<at::Tensor> loads;
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      std::vector<at::Tensor> others;
      for (int64_t other = 0; other < kExperts; ++other) {
        if (other != expert) others.push_back(logits_TE.select(0, token).select(0, other));
      }
      const at::Tensor border = std::get<0>(at::sort(at::stack(others), 0, true)).select(0, kChosen - 1);
      const at::Tensor distance = logits_TE.select(0, token).select(0, expert).sub(border).div(std::log(2.0));
      loads.push_back(at::erf(distance.div(std::sqrt(2.0))).add(1.0).mul(0.5));
    }
    sums_E = sums_E.add(at::stack(loads));
  }
  return sums_E;
}

at::Tensor divergence(const Layout& layout, const OracleGroup& group, const at::Tensor& probs_TE) {
  std::map<int64_t, std::vector<at::Tensor>> of_domain;
  for (const int64_t segment : group.averaged) {
    const at::Tensor mask = mask_T1(layout, {segment});
    of_domain[layout.segment_domain[static_cast<size_t>(segment)]].push_back(probs_TE.mul(mask).sum(0).div(mask.sum()));
  }
  std::vector<at::Tensor> losses;
  for (const auto& [domain, rows] : of_domain) {
    for (const auto& [other, other_rows] : of_domain) {
      if (other <= domain) continue;
      const at::Tensor p_E = at::stack(rows).mean(0);
      const at::Tensor q_E = at::stack(other_rows).mean(0);
      const at::Tensor m_E = p_E.add(q_E).mul(0.5);
      const auto entropy = [](const at::Tensor& x_E) { return x_E.mul(x_E.log()).sum().neg(); };
      const at::Tensor jsd = entropy(m_E).sub(entropy(p_E).add(entropy(q_E)).mul(0.5));
      losses.push_back(jsd.add(1e-6).log().neg());
    }
  }
  return losses.empty() ? at::zeros({}, at::kDouble) : at::stack(losses).mean();
}

at::Tensor group_value(const std::string& method, const Layout& layout, const OracleGroup& group, const at::Tensor& logits_TE,
                       const at::Tensor& probs_TE, const at::Tensor& fractions_E) {
  const at::Tensor mask = mask_T1(layout, group.averaged);
  const at::Tensor mean_E = probs_TE.mul(mask).sum(0).div(mask.sum());
  if (method == "lbl") return fractions_E.mul(mean_E).sum().mul(kExperts);
  if (method == "gshard") return fractions_E.mul(mean_E).mean();
  if (method == "importance_cv2") return variation(probs_TE.mul(mask).sum(0));
  if (method == "load_cv2") return variation(loads_E(logits_TE, mask));
  if (method == "variance") return probs_TE.sub(mean_E).square().mul(mask).sum().div(mask.sum()).neg();
  if (method == "expert_divergence") return divergence(layout, group, probs_TE);
  throw UsageError("the oracle does not know the method " + method);
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
      const int64_t num_counted = config.method == "gshard" ? 1 : kChosen;
      const at::Tensor fractions_E =
          constant_fractions_E(layout, group, probs_TE, config.scope.kind, history, layer, num_counted);
      const at::Tensor value = group_value(config.method, layout, group, logits_L[static_cast<size_t>(layer)], probs_TE,
                                           fractions_E);
      lbl = lbl.add(value.mul(group.weight));
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
