#include "switchyard/balance/selection.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kAllBins = ThresholdBins::kBins + 2;

// r_TE = s - a, with a token's a the (K + 1)-th largest of its corrected scores.
at::Tensor over_border_TE(const at::Tensor& logits_TE, const at::Tensor& offsets_E, int64_t num_chosen) {
  const at::Tensor corrected_TE = logits_TE.add(offsets_E.to(logits_TE.scalar_type()));
  const at::Tensor border_T1 = std::get<0>(at::topk(corrected_TE, num_chosen + 1, -1)).narrow(1, num_chosen, 1);
  return logits_TE.sub(border_T1).to(at::kDouble).contiguous();
}

// Halfway between the two values that the border lies between: on a value itself that token would tie.
std::vector<double> exact_thresholds(const at::Tensor& over_TE, double above) {
  const at::Tensor sorted_TE = std::get<0>(at::sort(over_TE, 0, /*descending=*/true));
  const int64_t num_tokens = sorted_TE.size(0);
  const int64_t rank = std::clamp<int64_t>(std::llround(above), 1, std::max<int64_t>(num_tokens - 1, 1));
  std::vector<double> thresholds_E;
  for (int64_t expert = 0; expert < sorted_TE.size(1); ++expert) {
    const double last_in = sorted_TE.const_data_ptr<double>()[(rank - 1) * sorted_TE.size(1) + expert];
    const double first_out =
        sorted_TE.const_data_ptr<double>()[std::min(rank, num_tokens - 1) * sorted_TE.size(1) + expert];
    thresholds_E.push_back(0.5 * (last_in + first_out));
  }
  return thresholds_E;
}

}  // namespace

at::Tensor updated_bias(const at::Tensor& bias_LE, const at::Tensor& counts_LE, const SelectionConfig& config) {
  const int64_t num_experts = counts_LE.size(1);
  const at::Tensor change_LE = counts_LE.sum(1, /*keepdim=*/true).sub(counts_LE.mul(num_experts)).sign().to(at::kDouble);
  const at::Tensor centered_LE =
      config.rule == SelectionRule::BiasCentered ? change_LE.sub(change_LE.mean(1, /*keepdim=*/true)) : change_LE;
  return bias_LE.to(at::kDouble).add(centered_LE, config.rate).to(at::kFloat);
}

int64_t ThresholdBins::bin_of(double value) const {
  if (!(value >= low)) return 0;
  if (value >= high) return kBins + 1;
  return 1 + std::min<int64_t>(kBins - 1, static_cast<int64_t>((value - low) / (high - low) * static_cast<double>(kBins)));
}

double ThresholdBins::lower_edge(int64_t bin) const {
  return low + (high - low) * static_cast<double>(bin - 1) / static_cast<double>(kBins);
}

double threshold_of(const ThresholdBins& bins, const int64_t* counts, double above) {
  double seen = 0.0;
  for (int64_t bin = kAllBins - 1; bin >= 0; --bin) {
    const auto count = static_cast<double>(counts[bin]);
    if (seen + count < above) {
      seen += count;
      continue;
    }
    if (bin == kAllBins - 1) return bins.high;
    if (bin == 0) return bins.low;
    const double share = count == 0.0 ? 0.0 : (above - seen) / count;
    return bins.lower_edge(bin + 1) - share * (bins.lower_edge(bin + 1) - bins.lower_edge(bin));
  }
  return bins.low;
}

SelectionStep::SelectionStep(const SelectionConfig& config, const BalanceShape& shape, const BalanceState& state)
    : config_(config), shape_(shape) {
  if (config.rule == SelectionRule::None) return;
  SWITCHYARD_CHECK(!quantile() || (shape.num_chosen >= 1 && shape.num_chosen < shape.num_experts), UsageError,
                   "balance.selection.rule = \"", to_string(config.rule), "\" with ", shape.num_chosen, " chosen of ",
                   shape.num_experts, " experts; expected fewer chosen than experts");
  offsets_LE_ = state.selection_offsets_LE.defined()
                    ? state.selection_offsets_LE.contiguous()
                    : at::zeros({shape.num_layers, shape.num_experts}, at::kFloat);
  const auto rows = static_cast<size_t>(shape.num_layers * shape.num_experts);
  if (config.rule == SelectionRule::Quantile) histogram_.assign(rows * static_cast<size_t>(kAllBins), 0);
  if (config.rule == SelectionRule::MeanQuantile) {
    threshold_sums_LE_.assign(rows, 0.0);
    micro_batches_L_.assign(static_cast<size_t>(shape.num_layers), 0.0);
  }
}

bool SelectionStep::quantile() const {
  return config_.rule == SelectionRule::Quantile || config_.rule == SelectionRule::MeanQuantile;
}

at::Tensor SelectionStep::offsets_E(int64_t layer) const {
  return offsets_LE_.defined() ? offsets_LE_.select(0, layer) : at::Tensor();
}

const float* SelectionStep::old_offsets(int64_t layer) const {
  return offsets_LE_.const_data_ptr<float>() + layer * shape_.num_experts;
}

// Thresholds are minus the offsets.
ThresholdBins SelectionStep::bins_of(int64_t layer) const {
  const auto [least, most] = std::minmax_element(old_offsets(layer), old_offsets(layer) + shape_.num_experts);
  return {.low = -static_cast<double>(*most) - 1.0, .high = -static_cast<double>(*least) + 1.0};
}

void SelectionStep::record(int64_t layer, const Routing& routing, const at::Tensor& segment_T,
                           const std::vector<int64_t>& micro_batch_S) {
  if (!quantile()) return;
  const at::NoGradGuard no_grad;
  SWITCHYARD_CHECK(routing.logits_TE.defined(), StateError, "balance.selection.rule = \"", to_string(config_.rule),
                   "\" needs the router's logits, and this router has none; use bias, or a router with scores");
  if (config_.rule == SelectionRule::Quantile) {
    record_micro_batch(layer, routing.logits_TE.index({segment_T.ge(0)}));
    return;
  }
  std::vector<int64_t> with_padding = micro_batch_S;
  with_padding.push_back(-1);  // the last one is what padding, segment -1, reads
  const at::Tensor micro_batch_T = at::tensor(with_padding, at::kLong).index({segment_T});
  for (const int64_t micro_batch : std::set<int64_t>(micro_batch_S.begin(), micro_batch_S.end())) {
    record_micro_batch(layer, routing.logits_TE.index({micro_batch_T.eq(micro_batch)}));
  }
}

void SelectionStep::record_micro_batch(int64_t layer, const at::Tensor& logits_TE) {
  if (logits_TE.size(0) == 0) return;
  const at::Tensor over_TE = over_border_TE(logits_TE, offsets_E(layer), shape_.num_chosen);
  if (config_.rule == SelectionRule::MeanQuantile) {
    const double above = static_cast<double>(over_TE.size(0) * shape_.num_chosen) / static_cast<double>(shape_.num_experts);
    const std::vector<double> thresholds_E = exact_thresholds(over_TE, above);
    for (size_t expert = 0; expert < thresholds_E.size(); ++expert) {
      threshold_sums_LE_[static_cast<size_t>(layer * shape_.num_experts) + expert] += thresholds_E[expert];
    }
    micro_batches_L_[static_cast<size_t>(layer)] += 1.0;
    return;
  }
  const ThresholdBins bins = bins_of(layer);
  const double* values = over_TE.const_data_ptr<double>();
  int64_t* counts = histogram_.data() + layer * shape_.num_experts * kAllBins;
  for (int64_t at = 0; at < over_TE.numel(); ++at) ++counts[(at % shape_.num_experts) * kAllBins + bins.bin_of(values[at])];
}

std::vector<double> SelectionStep::packed_thresholds() const {
  std::vector<double> packed = threshold_sums_LE_;
  packed.insert(packed.end(), micro_batches_L_.begin(), micro_batches_L_.end());
  return packed;
}

void SelectionStep::unpack_thresholds(const std::vector<double>& packed) {
  const auto middle = packed.begin() + std::ssize(threshold_sums_LE_);
  std::copy(packed.begin(), middle, threshold_sums_LE_.begin());
  std::copy(middle, packed.end(), micro_batches_L_.begin());
}

void SelectionStep::close(Communicator& comm, int64_t replica) {
  if (!quantile() || comm.size() == 1 || closed_) return;
  closed_ = true;
  std::vector<double> thresholds = packed_thresholds();
  if (replica > 0) {
    std::fill(histogram_.begin(), histogram_.end(), 0);
    std::fill(thresholds.begin(), thresholds.end(), 0.0);
  }
  if (!histogram_.empty()) comm.all_reduce_sum(std::span<int64_t>(histogram_));
  if (!thresholds.empty()) comm.all_reduce_sum(std::span<double>(thresholds));
  unpack_thresholds(thresholds);
}

void SelectionStep::save(StepProgress& progress) const {
  put(progress, "threshold_histogram", histogram_);
  put(progress, "threshold_sums", packed_thresholds());
  put(progress, "thresholds_closed", std::vector<bool>{closed_});
}

void SelectionStep::restore(const StepProgress& progress) {
  take(progress, "threshold_histogram", histogram_);
  std::vector<double> thresholds = packed_thresholds();
  take(progress, "threshold_sums", thresholds);
  unpack_thresholds(thresholds);
  std::vector<bool> closed(1);
  take(progress, "thresholds_closed", closed);
  closed_ = closed.front();
}

std::vector<double> SelectionStep::updated_thresholds_E(int64_t layer, double above) const {
  const ThresholdBins bins = bins_of(layer);
  std::vector<double> thresholds_E;
  for (int64_t expert = 0; expert < shape_.num_experts; ++expert) {
    const int64_t row = layer * shape_.num_experts + expert;
    const double fresh = config_.rule == SelectionRule::Quantile
                             ? threshold_of(bins, histogram_.data() + row * kAllBins, above)
                             : threshold_sums_LE_[static_cast<size_t>(row)] /
                                   std::max(micro_batches_L_[static_cast<size_t>(layer)], 1.0);
    SWITCHYARD_CHECK(std::isfinite(fresh), ShapeError, "balance.selection.rule = \"", to_string(config_.rule), "\": the threshold of expert ",
                     expert, " of MoE layer ", layer, " is ", fresh, "; expected finite logits of every expert. To keep tokens from an expert "
                     "set its logits low, not to -infinity");
    const double old = -static_cast<double>(old_offsets(layer)[expert]);
    thresholds_E.push_back(config_.decay * old + (1.0 - config_.decay) * fresh);
  }
  return thresholds_E;
}

void SelectionStep::update(const at::Tensor& counts_LE, int64_t step_tokens, BalanceState& state) const {
  if (config_.rule == SelectionRule::None) return;
  if (!quantile()) {
    state.selection_offsets_LE = updated_bias(offsets_LE_, counts_LE, config_);
    return;
  }
  at::Tensor updated_LE = at::zeros(offsets_LE_.sizes(), at::kFloat);
  const double above = static_cast<double>(step_tokens * shape_.num_chosen) / static_cast<double>(shape_.num_experts);
  float* updated = updated_LE.mutable_data_ptr<float>();
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    const std::vector<double> thresholds_E = updated_thresholds_E(layer, above);
    double mean = 0.0;
    for (const double threshold : thresholds_E) mean += threshold / static_cast<double>(shape_.num_experts);
    for (const double threshold : thresholds_E) *updated++ = static_cast<float>(mean - threshold);
  }
  state.selection_offsets_LE = updated_LE;
}

}  // namespace switchyard
