#include "switchyard/balance/state.hpp"

#include <algorithm>

#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {

std::vector<NamedState> state_read_by(const BalanceConfig& config, const BalanceState& state) {
  const std::vector<BalanceTerm> terms = all_terms(config);
  const auto any_of_scope = [&terms](ScopeKind kind) {
    return std::ranges::any_of(terms, [kind](const auto& term) { return term.scope.kind == kind && term.method != "none"; });
  };
  std::vector<NamedState> read;
  if (any_of_scope(ScopeKind::PreviousStep)) read.push_back({"previous_counts_LE", state.previous_counts_LE, at::kLong, "int64"});
  if (any_of_scope(ScopeKind::Ema)) read.push_back({"ema_fractions_LE", state.ema_fractions_LE, at::kDouble, "double"});
  if (config.selection.rule != SelectionRule::None) {
    read.push_back({"selection_offsets_LE", state.selection_offsets_LE, at::kFloat, "float"});
  }
  return read;
}

void check_state(const BalanceConfig& config, const BalanceShape& shape, const BalanceState& state) {
  for (const NamedState& read : state_read_by(config, state)) {
    if (!read.kept_LE.defined()) continue;
    SWITCHYARD_CHECK(read.kept_LE.dim() == 2 && read.kept_LE.size(0) == shape.num_layers &&
                         read.kept_LE.size(1) == shape.num_experts && read.kept_LE.scalar_type() == read.type,
                     ShapeError, "balance state: ", read.name, " is ", read.kept_LE.scalar_type(), " ", read.kept_LE.sizes(),
                     "; expected ", read.type_name, " [", shape.num_layers, ", ", shape.num_experts,
                     "]. Restore the state of a run with this model, or start without one");
  }
}

std::vector<std::vector<double>> earlier_fractions(const Scope& scope, const BalanceState& state, const BalanceShape& shape) {
  const bool ema = scope.kind == ScopeKind::Ema;
  const at::Tensor& kept_LE = ema ? state.ema_fractions_LE : state.previous_counts_LE;
  std::vector<std::vector<double>> fractions_LE;
  if (!kept_LE.defined()) return fractions_LE;
  const at::Tensor host_LE = kept_LE.to(at::kCPU).contiguous();
  const auto num_experts = static_cast<size_t>(shape.num_experts);
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    if (ema) {
      const double* row = host_LE.const_data_ptr<double>() + layer * shape.num_experts;
      fractions_LE.emplace_back(row, row + num_experts);
    } else {
      fractions_LE.push_back(fractions({host_LE.const_data_ptr<int64_t>() + layer * shape.num_experts, num_experts}));
    }
  }
  return fractions_LE;
}

void keep_counts(const at::Tensor& counts_LE, double ema_decay, BalanceState& state) {
  state.previous_counts_LE = counts_LE;
  if (ema_decay == 0.0) return;
  const at::Tensor fractions_LE = counts_LE.to(at::kDouble).div(counts_LE.sum(1, /*keepdim=*/true).clamp_min(1));
  const at::Tensor& kept_LE = state.ema_fractions_LE;
  // Each product rounded by itself: add() with a factor rounds once on some processors, and ranks compare the bits.
  state.ema_fractions_LE =
      kept_LE.defined() ? kept_LE.mul(ema_decay).add(fractions_LE.mul(1.0 - ema_decay)) : fractions_LE;
}

}  // namespace switchyard
