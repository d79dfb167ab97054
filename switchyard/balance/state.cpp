#include "switchyard/balance/state.hpp"

#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {

std::vector<std::vector<double>> earlier_fractions(const Scope& scope, const BalanceState& state, const BalanceShape& shape) {
  const bool ema = scope.kind == ScopeKind::Ema;
  const at::Tensor& kept_LE = ema ? state.ema_fractions_LE : state.previous_counts_LE;
  std::vector<std::vector<double>> fractions_LE;
  if (!kept_LE.defined()) return fractions_LE;
  SWITCHYARD_CHECK(kept_LE.dim() == 2 && kept_LE.size(0) == shape.num_layers && kept_LE.size(1) == shape.num_experts &&
                       kept_LE.scalar_type() == (ema ? at::kDouble : at::kLong),
                   ShapeError, "balance state: ", ema ? "ema_fractions_LE" : "previous_counts_LE", " is ",
                   kept_LE.scalar_type(), " ", kept_LE.sizes(), "; expected ", ema ? "double" : "int64", " [", shape.num_layers,
                   ", ", shape.num_experts, "]");
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
  state.ema_fractions_LE = kept_LE.defined() ? kept_LE.mul(ema_decay).add(fractions_LE, 1.0 - ema_decay) : fractions_LE;
}

}  // namespace switchyard
