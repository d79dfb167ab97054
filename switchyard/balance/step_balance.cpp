#include "switchyard/balance/step_balance.hpp"

#include <ATen/ops/zeros.h>

#include <algorithm>

#include "switchyard/balance/inject.hpp"
#include "switchyard/balance/ledger.hpp"
#include "switchyard/balance/method.hpp"
#include "switchyard/balance/statistics.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNoGroup = -1;

// Group of each segment; kNoGroup for segments before, between or behind the groups, which hold no tokens.
std::vector<int64_t> groups_of_segments(const std::vector<BalanceGroup>& groups, int64_t num_segments) {
  std::vector<int64_t> group_of(static_cast<size_t>(num_segments), kNoGroup);
  for (size_t group = 0; group < groups.size(); ++group) {
    const SegmentRange& range = groups[group].averaged;
    std::fill(group_of.begin() + range.begin, group_of.begin() + range.end, static_cast<int64_t>(group));
  }
  return group_of;
}

// f of each layer from what earlier steps left; empty where they left nothing.
std::vector<std::vector<double>> earlier_fractions(ScopeKind kind, const BalanceState& state, const BalanceShape& shape) {
  const bool ema = kind == ScopeKind::Ema;
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

// Counts of each layer as fractions, [L, E] double.
at::Tensor fractions_LE_of(const at::Tensor& counts_LE) {
  return counts_LE.to(at::kDouble).div(counts_LE.sum(1, /*keepdim=*/true).clamp_min(1));
}

void check_shape(const BalanceShape& shape) {
  SWITCHYARD_CHECK(shape.num_layers >= 1 && shape.num_experts >= 1, UsageError, "balance: ", shape.num_layers,
                   " MoE layers of ", shape.num_experts, " experts; expected at least 1 of each");
}

}  // namespace

struct StepBalance::Impl {
  Impl(const BalanceConfig& given_config, const BalanceShape& given_shape, StepPlan given_plan, const BalanceState& state)
      : config(given_config),
        shape(given_shape),
        plan(std::move(given_plan)),
        method(find_method(config.method)),
        groups(make_groups(config.scope, config.weighting, plan)),
        group_of_segment(groups_of_segments(groups, plan.num_segments())),
        factor_of_segment(contract_factors(plan)),
        ledger(plan, shape.num_layers, shape.num_experts),
        closed(static_cast<size_t>(plan.num_forwards()), false),
        group_rows_LE(groups.size()) {
    if (fraction_source(config.scope.kind) == FractionSource::EarlierSteps) {
      earlier_LE = earlier_fractions(config.scope.kind, state, shape);
    }
    make_cells();
    fill_known();
  }

  [[nodiscard]] bool from_earlier() const { return fraction_source(config.scope.kind) == FractionSource::EarlierSteps; }
  [[nodiscard]] bool lacks_history() const { return method.value != nullptr && from_earlier() && earlier_LE.empty(); }
  // Scores of all layers are needed: a list that names only some would be read as others.
  [[nodiscard]] bool has_values() const {
    bool all_probs = true;
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) all_probs = all_probs && ledger.has_probs(layer);
    return method.value != nullptr && !lacks_history() && all_probs;
  }
  [[nodiscard]] bool injects() const { return method.slope != nullptr && config.coefficient != 0.0; }
  [[nodiscard]] bool injects_z() const { return config.z_coefficient != 0.0; }
  [[nodiscard]] double per_layer(double coefficient) const {
    return config.layers == LayerReduction::Mean ? coefficient / static_cast<double>(shape.num_layers) : coefficient;
  }
  [[nodiscard]] std::string place(int64_t forward, int64_t layer) const {
    return join_text("step ", plan.step, ", forward ", forward, ", layer ", layer);
  }
  [[nodiscard]] size_t key(int64_t forward, int64_t layer) const {
    return static_cast<size_t>(forward * shape.num_layers + layer);
  }

  void check_forward(int64_t forward) const {
    SWITCHYARD_CHECK(forward >= 0 && forward < plan.num_forwards(), UsageError, "step ", plan.step, ": forward ", forward,
                     " of a plan with ", plan.num_forwards());
  }
  void check_place(int64_t forward, int64_t layer) const {
    check_forward(forward);
    SWITCHYARD_CHECK(layer >= 0 && layer < shape.num_layers, UsageError, "step ", plan.step, ": layer ", layer, " of ",
                     shape.num_layers, " MoE layers");
  }

  void make_cells();
  void fill_known();
  void fill_forward(int64_t forward);
  [[nodiscard]] bool counted(const BalanceGroup& group) const;
  [[nodiscard]] std::vector<double> group_coefficients_LE(const BalanceGroup& group) const;
  [[nodiscard]] std::vector<double> group_fractions(const BalanceGroup& group, int64_t layer) const;
  [[nodiscard]] double layer_value(int64_t layer) const;
  void check_passed(int64_t forward, int64_t layer, const Routing& routing) const;

  BalanceConfig config;
  BalanceShape shape;
  StepPlan plan;
  StatisticMethod method;
  std::vector<BalanceGroup> groups;
  std::vector<int64_t> group_of_segment;
  std::vector<double> factor_of_segment;
  std::vector<std::vector<double>> earlier_LE;  // f from earlier steps
  StepLedger ledger;
  std::vector<bool> closed;                        // [F]
  std::vector<std::vector<double>> group_rows_LE;  // [G] of [L, E], empty until known
  std::vector<CellPtr> cells;                      // [F * L]
  std::vector<CellPtr> z_cells;                    // [F]
  std::vector<bool> passed_probs;                  // [F * L]: whether the router used the identity
  std::vector<bool> passed_logits;                 // [F * L]
  bool counting_closed = false;
};

void StepBalance::Impl::make_cells() {
  const int64_t step_tokens = plan.step_tokens();
  const double z_weight = step_tokens == 0 ? 0.0 : per_layer(config.z_coefficient) / static_cast<double>(step_tokens);
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      cells.push_back(c10::make_intrusive<CoefficientCell>(place(forward, layer)));
    }
    const int64_t begin = plan.forward_begin[static_cast<size_t>(forward)];
    at::Tensor z_S1 = at::zeros({plan.forward_segments(forward), 1}, at::kDouble);
    for (int64_t segment = 0; segment < z_S1.size(0); ++segment) {
      z_S1.mutable_data_ptr<double>()[segment] = z_weight * factor_of_segment[static_cast<size_t>(begin + segment)];
    }
    z_cells.push_back(c10::make_intrusive<CoefficientCell>(place(forward, 0)));
    z_cells.back()->fill(z_S1);
  }
  passed_probs.assign(cells.size(), false);
  passed_logits.assign(cells.size(), false);
}

// Whether all counts that the group needs are in the ledger for good.
bool StepBalance::Impl::counted(const BalanceGroup& group) const {
  if (group.counted.empty()) return true;
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    const int64_t begin = plan.forward_begin[static_cast<size_t>(forward)];
    const int64_t end = plan.forward_begin[static_cast<size_t>(forward) + 1];
    if (begin < group.counted.end && end > group.counted.begin && !closed[static_cast<size_t>(forward)]) return false;
  }
  return true;
}

std::vector<double> StepBalance::Impl::group_fractions(const BalanceGroup& group, int64_t layer) const {
  if (!from_earlier()) return fractions(ledger.counts_E(layer, group.counted));
  if (earlier_LE.empty()) return std::vector<double>(static_cast<size_t>(shape.num_experts), 0.0);
  return earlier_LE[static_cast<size_t>(layer)];
}

// lambda_l * w_g / T_g * slope: the formula of the loss but for the contract's factor. For the LBL the slope is E * f.
std::vector<double> StepBalance::Impl::group_coefficients_LE(const BalanceGroup& group) const {
  const auto num_experts = static_cast<size_t>(shape.num_experts);
  std::vector<double> rows_LE(static_cast<size_t>(shape.num_layers) * num_experts, 0.0);
  if (method.slope == nullptr) return rows_LE;
  const double weight = per_layer(config.coefficient) * group.weight / static_cast<double>(group.tokens);
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const std::vector<double> fractions_E = group_fractions(group, layer);
    const std::span<double> row_E(rows_LE.data() + layer * shape.num_experts, num_experts);
    method.slope({.fractions_E = fractions_E, .mean_probs_E = {}}, row_E);
    for (double& entry : row_E) entry *= weight;
  }
  return rows_LE;
}

void StepBalance::Impl::fill_forward(int64_t forward) {
  const int64_t begin = plan.forward_begin[static_cast<size_t>(forward)];
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    at::Tensor rows_SE = at::zeros({plan.forward_segments(forward), shape.num_experts}, at::kDouble);
    double* row_E = rows_SE.mutable_data_ptr<double>();
    for (int64_t row = 0; row < rows_SE.size(0); ++row, row_E += shape.num_experts) {
      const auto segment = static_cast<size_t>(begin + row);
      if (group_of_segment[segment] == kNoGroup) continue;
      const std::vector<double>& group_LE = group_rows_LE[static_cast<size_t>(group_of_segment[segment])];
      const double* from_E = group_LE.data() + layer * shape.num_experts;
      const double factor = factor_of_segment[segment];
      std::transform(from_E, from_E + shape.num_experts, row_E, [factor](double entry) { return entry * factor; });
    }
    cells[key(forward, layer)]->fill(rows_SE);
  }
}

// Computes groups whose counts are complete, then fills the forwards that have all their groups.
void StepBalance::Impl::fill_known() {
  for (size_t group = 0; group < groups.size(); ++group) {
    if (group_rows_LE[group].empty() && counted(groups[group])) group_rows_LE[group] = group_coefficients_LE(groups[group]);
  }
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    if (cells[key(forward, 0)]->filled()) continue;
    const auto begin = group_of_segment.begin() + plan.forward_begin[static_cast<size_t>(forward)];
    const bool known = std::all_of(begin, begin + plan.forward_segments(forward), [this](int64_t group) {
      return group == kNoGroup || !group_rows_LE[static_cast<size_t>(group)].empty();
    });
    if (known) fill_forward(forward);
  }
}

// sum_g w_g * value_g.
double StepBalance::Impl::layer_value(int64_t layer) const {
  double value = 0.0;
  for (const BalanceGroup& group : groups) {
    const std::vector<double> fractions_E = group_fractions(group, layer);
    std::vector<double> mean_probs_E = ledger.prob_sums_E(layer, group.averaged);
    for (double& mean : mean_probs_E) mean /= static_cast<double>(group.tokens);
    value += group.weight * method.value({.fractions_E = fractions_E, .mean_probs_E = mean_probs_E});
  }
  return value;
}

// A loss that is asked for and cannot act is an error, never silence.
void StepBalance::Impl::check_passed(int64_t forward, int64_t layer, const Routing& routing) const {
  SWITCHYARD_CHECK(!injects() || (passed_probs[key(forward, layer)] && routing.probs_TE.defined()), StateError,
                   place(forward, layer), ": the router did not pass its probabilities through, so the balancing loss '",
                   config.method, "' with coefficient ", config.coefficient,
                   " could not act. Use a router that takes balancing, or set balance.method = \"none\"");
  SWITCHYARD_CHECK(!injects_z() || (passed_logits[key(forward, layer)] && routing.logits_TE.defined()), StateError,
                   place(forward, layer), ": the router did not pass its logits through, so the z-loss with coefficient ",
                   config.z_coefficient, " could not act. Use a router that takes balancing, or set balance.z_coefficient = 0");
}

StepBalance::StepBalance(const BalanceConfig& config, const BalanceShape& shape, StepPlan plan, const BalanceState& state) {
  config.validate("");
  check_shape(shape);
  check_plan(plan);
  impl_ = std::make_unique<Impl>(config, shape, std::move(plan), state);
}

StepBalance::~StepBalance() = default;
StepBalance::StepBalance(StepBalance&&) noexcept = default;

at::Tensor StepBalance::through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                       const at::Tensor& segment_T) {
  impl_->check_place(forward, layer);
  impl_->passed_logits[impl_->key(forward, layer)] = true;
  return impl_->injects_z() ? inject_z_loss(logits_TE, segment_T, impl_->z_cells[static_cast<size_t>(forward)]) : logits_TE;
}

at::Tensor StepBalance::through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE, const at::Tensor& segment_T) {
  impl_->check_place(forward, layer);
  impl_->passed_probs[impl_->key(forward, layer)] = true;
  return impl_->injects() ? inject_coefficients(probs_TE, segment_T, impl_->cells[impl_->key(forward, layer)]) : probs_TE;
}

bool StepBalance::lacks_history() const { return impl_->lacks_history(); }

void StepBalance::record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T) {
  impl_->check_place(forward, layer);
  impl_->check_passed(forward, layer, routing);
  SWITCHYARD_CHECK(routing.num_experts == impl_->shape.num_experts, ShapeError, impl_->place(forward, layer), ": routing over ",
                   routing.num_experts, " experts; expected ", impl_->shape.num_experts);
  const TokenStatistics token_statistics = impl_->injects_z() ? TokenStatistics::SquaredLse : TokenStatistics::None;
  try {
    impl_->ledger.record(forward, layer,
                         segment_statistics(routing, segment_T, impl_->plan.forward_segments(forward), token_statistics));
  } catch (const ShapeError& error) {
    throw ShapeError(join_text(impl_->place(forward, layer), ": ", error.what()));
  }
}

void StepBalance::close_forward(int64_t forward) {
  impl_->check_forward(forward);
  for (int64_t layer = 0; layer < impl_->shape.num_layers; ++layer) {
    SWITCHYARD_CHECK(impl_->ledger.has(forward, layer), StateError, impl_->place(forward, layer),
                     ": close_forward() before record(); every MoE layer must record once per forward");
  }
  if (impl_->closed[static_cast<size_t>(forward)]) return;
  impl_->closed[static_cast<size_t>(forward)] = true;
  impl_->fill_known();
}

void StepBalance::close_counting() {
  for (int64_t forward = 0; forward < impl_->plan.num_forwards(); ++forward) {
    SWITCHYARD_CHECK(impl_->closed[static_cast<size_t>(forward)], StateError, "step ", impl_->plan.step,
                     ": close_counting() before close_forward(", forward, "); the step's counts are not complete");
  }
  impl_->counting_closed = true;
}

at::Tensor StepBalance::step_counts_LE() const {
  SWITCHYARD_CHECK(impl_->counting_closed, StateError, "step ", impl_->plan.step, ": step_counts_LE() before close_counting()");
  return impl_->ledger.step_counts_LE();
}

at::Tensor StepBalance::micro_batch_counts_MLE() const {
  SWITCHYARD_CHECK(impl_->counting_closed, StateError, "step ", impl_->plan.step,
                   ": micro_batch_counts_MLE() before close_counting()");
  return impl_->ledger.micro_batch_counts_MLE();
}

BalanceValues StepBalance::values() const {
  const Impl& impl = *impl_;
  SWITCHYARD_CHECK(impl.counting_closed, StateError, "step ", impl.plan.step, ": values() before close_counting()");
  BalanceValues values;
  const int64_t num_layers = impl.shape.num_layers;
  const auto step_tokens = static_cast<double>(std::max<int64_t>(impl.plan.step_tokens(), 1));
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    if (impl.has_values()) {
      values.lbl_L.push_back(impl.layer_value(layer));
      values.weighted_loss += impl.per_layer(impl.config.coefficient) * values.lbl_L.back();
    }
    if (impl.injects_z()) {
      values.z_loss_L.push_back(impl.ledger.squared_lse(layer) / step_tokens);
      values.weighted_loss += impl.per_layer(impl.config.z_coefficient) * values.z_loss_L.back();
    }
  }
  return values;
}

void StepBalance::finish(BalanceState& state) const {
  const at::Tensor counts_LE = step_counts_LE();
  // A step of padding says nothing about the experts; what is known from before stays.
  if (impl_->plan.step_tokens() == 0) return;
  state.previous_counts_LE = counts_LE;
  if (impl_->config.scope.kind != ScopeKind::Ema) return;
  const double decay = impl_->config.scope.decay;
  const at::Tensor fractions_LE = fractions_LE_of(counts_LE);
  const at::Tensor& kept_LE = state.ema_fractions_LE;
  state.ema_fractions_LE = kept_LE.defined() ? kept_LE.mul(decay).add(fractions_LE, 1.0 - decay) : fractions_LE;
}

at::Tensor StepBalance::coefficients_GE(int64_t forward, int64_t layer) const {
  impl_->check_place(forward, layer);
  return impl_->cells[impl_->key(forward, layer)]->coefficients_SE();
}

}  // namespace switchyard
