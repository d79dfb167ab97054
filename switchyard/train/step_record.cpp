#include "switchyard/train/step_record.hpp"

#include <algorithm>
#include <numeric>
#include <span>

#include "switchyard/measure/load.hpp"
#include "switchyard/train/build_info.hpp"
#include "switchyard/train/run_store.hpp"

namespace switchyard {
namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Mean MaxVio over the rows that have counts; 0 where none has.
/// @param counts  int64, experts in the last dimension
double mean_max_vio(const at::Tensor& counts) {
  const int64_t num_experts = counts.size(-1);
  const at::Tensor rows = counts.contiguous().view({-1, num_experts});
  double sum = 0.0;
  int64_t measured = 0;
  for (int64_t row = 0; row < rows.size(0); ++row) {
    const std::span<const int64_t> counts_E(rows.const_data_ptr<int64_t>() + row * num_experts,
                                            static_cast<size_t>(num_experts));
    if (std::all_of(counts_E.begin(), counts_E.end(), [](int64_t count) { return count == 0; })) continue;
    sum += load_metrics(counts_E).max_vio;
    ++measured;
  }
  return measured == 0 ? 0.0 : sum / static_cast<double>(measured);
}

}  // namespace

StepRecord make_step_record(const StepResult& result, const BalanceConfig& config) {
  StepRecord record;
  record.loss = result.loss;
  record.balance_loss = result.balance.weighted_loss;
  record.lbl_layers = result.balance.lbl_L;
  if (!result.balance.lbl_L.empty()) record.lbl = mean(result.balance.lbl_L);
  if (!result.balance.z_loss_L.empty()) record.z_loss = mean(result.balance.z_loss_L);
  for (const TermValues& term : result.balance.terms) {
    const std::optional<double> value = term.value_L.empty() ? std::nullopt : std::optional(mean(term.value_L));
    record.balance_terms.push_back({term.term.method, to_string(term.term.scope), term.term.coefficient, value});
  }
  if (!result.balance.orthogonality_L.empty()) {
    record.balance_terms.push_back(
        {"orthogonality", "none", config.orthogonality_coefficient, mean(result.balance.orthogonality_L)});
  }
  if (!result.simbal_L.empty()) {
    record.balance_terms.push_back({"simbal", "none", config.simbal_coefficient, mean(result.simbal_L)});
  }
  record.max_vio_step = mean_max_vio(result.step_counts_LE);
  record.max_vio_micro_batch = mean_max_vio(result.micro_batch_counts_MLE);
  return record;
}

StartRecord make_start_record(const RunConfig& config, const std::string& command) {
  StartRecord record;
  record.name = config.name;
  record.arm = config.arm;
  record.seed = config.seed;
  record.total_steps = config.steps;
  record.method = config.balance.method;
  record.scope = config.balance.method == "none" ? "none" : to_string(config.balance.scope);
  if (config.balance.method != "none") record.coefficient = config.balance.coefficient;
  record.layers = to_string(config.balance.layers);
  record.router = config.model.router.name;
  record.num_experts = config.model.num_experts;
  record.num_chosen = config.model.num_chosen;
  const BuildInfo build = build_info();
  record.version = build.version;
  record.commit = build.commit;
  record.torch_version = build.torch_version;
  record.processor = build.processor;
  record.time_utc = utc_now();
  record.command = command;
  return record;
}

}  // namespace switchyard
