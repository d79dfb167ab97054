#include "switchyard/report/chart_data.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "switchyard/report/arm_style.hpp"
#include "switchyard/report/arm_summary.hpp"
#include "switchyard/report/expert_order.hpp"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr int kDigits = 6;       // of metrics
constexpr int kTableDigits = 4;  // of tables with one number an expert

double round_to(double value, int digits) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double scale = std::pow(10.0, digits - 1 - static_cast<int>(std::floor(std::log10(std::abs(value)))));
  return std::isfinite(scale) ? std::round(value * scale) / scale : value;
}

json rounded(const std::vector<double>& values, int digits) {
  json list = json::array();
  for (const double value : values) list.push_back(round_to(value, digits));
  return list;
}

json rounded(const std::vector<std::vector<double>>& rows, int digits) {
  json list = json::array();
  for (const std::vector<double>& row : rows) list.push_back(rounded(row, digits));
  return list;
}

json metric_value(const StudyRun& run, std::string_view name) {
  const std::optional<double> value = find_metric(name).value(run);
  return value ? json(round_to(*value, kDigits)) : json();
}

/// Load of each expert relative to an even spread: f_e E, over all held-out slots.
std::vector<double> relative_load(const std::vector<std::vector<int64_t>>& counts_NE, std::size_t num_experts) {
  std::vector<double> load(num_experts, 0.0);
  for (const std::vector<int64_t>& counts_E : counts_NE) {
    for (std::size_t e = 0; e < num_experts; ++e) load[e] += static_cast<double>(counts_E[e]);
  }
  const double total = std::accumulate(load.begin(), load.end(), 0.0);
  for (double& value : load) value = total > 0.0 ? value * static_cast<double>(num_experts) / total : 0.0;
  return load;
}

json layer_json(const LayerEvaluation& layer, const StudyGroup& group) {
  const std::vector<std::vector<double>> shares_NE = token_shares_NE(layer.counts_NE, group.num_chosen);
  return {{"layer", layer.layer},
          {"specialization", group.domains.size() > 1 ? json(round_to(layer.specialization, kDigits)) : json()},
          {"maxVio", round_to(layer.global.max_vio, kDigits)},
          {"dead", layer.global.dead_experts},
          {"shares", rounded(shares_NE, kTableDigits)},
          {"order", expert_order(shares_NE)},
          {"load", rounded(relative_load(layer.counts_NE, static_cast<std::size_t>(group.num_experts)), kTableDigits)},
          {"distance", rounded(layer.jensen_shannon_NN, kTableDigits)}};
}

json curve_json(const ThinCurve& curve) {
  return {{"window", curve.window},
          {"step", curve.step},
          {"loss", rounded(curve.loss, kDigits)},
          {"lbl", rounded(curve.lbl, kDigits)},
          {"maxVioStep", rounded(curve.max_vio_step, kDigits)},
          {"maxVioMicroBatch", rounded(curve.max_vio_micro_batch, kDigits)}};
}

json history_json(const StudyRun& run, const StudyGroup& group) {
  const bool has_domains = group.domains.size() > 1;  // of one there is no specialisation
  json history = json::array();
  const std::vector<EvaluationRecord>& all = run.input.log.evaluations;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const EvaluationRecord& evaluation = all[i];
    if (i + 1 < all.size() && all[i + 1].step == evaluation.step) continue;  // was repeated over more text
    history.push_back({{"step", evaluation.step},
                       {"specialization", has_domains ? json(round_to(evaluation.specialization, kDigits)) : json()},
                       {"maxVio", round_to(evaluation.global.max_vio, kDigits)},
                       {"loss", round_to(evaluation.loss, kDigits)}});
  }
  return history;
}

json run_json(const StudyRun& run, const StudyGroup& group, int64_t curve_points) {
  json value = {{"name", run.input.name},
                {"arm", run.arm},
                {"seed", run.input.log.start.seed},
                {"done", run.state == RunState::Done},
                {"state", to_string(run.state)},
                {"curve", curve_json(thin_curve(run.input.log.steps, curve_points))},
                {"history", history_json(run, group)},
                {"evaluation", nullptr}};
  const EvaluationRecord* evaluation = run.evaluation();
  if (evaluation == nullptr) return value;
  json layers = json::array();
  for (const LayerEvaluation& layer : evaluation->layers) layers.push_back(layer_json(layer, group));
  value["evaluation"] = {{"step", evaluation->step},
                         {"specialization", metric_value(run, "specialization")},
                         {"maxVio", metric_value(run, "max_vio_global")},
                         {"maxVioMicroBatch", metric_value(run, "max_vio_micro_batch")},
                         {"loss", metric_value(run, "loss")},
                         {"layers", layers}};
  return value;
}

}  // namespace

ThinCurve thin_curve(const std::vector<StepRecord>& steps, int64_t max_points) {
  SWITCHYARD_CHECK(max_points >= 1, UsageError, "a curve of ", max_points, " points was asked for; expected at least 1");
  const auto limit = static_cast<std::size_t>(max_points);
  ThinCurve curve;
  curve.window = std::max<std::size_t>(1, (steps.size() + limit - 1) / limit);
  for (std::size_t begin = 0; begin < steps.size(); begin += curve.window) {
    const std::size_t end = std::min(steps.size(), begin + curve.window);
    double loss = 0.0, lbl = 0.0, max_vio_step = 0.0, max_vio_micro_batch = 0.0;
    int64_t num_lbl = 0;
    for (std::size_t i = begin; i < end; ++i) {
      loss += steps[i].loss;
      max_vio_step += steps[i].max_vio_step;
      max_vio_micro_batch += steps[i].max_vio_micro_batch;
      lbl += steps[i].lbl.value_or(0.0);
      num_lbl += steps[i].lbl ? 1 : 0;
    }
    const auto count = static_cast<double>(end - begin);
    curve.step.push_back(static_cast<double>(steps[end - 1].step));
    curve.loss.push_back(loss / count);
    curve.max_vio_step.push_back(max_vio_step / count);
    curve.max_vio_micro_batch.push_back(max_vio_micro_batch / count);
    curve.lbl.push_back(num_lbl == 0 ? std::numeric_limits<double>::quiet_NaN() : lbl / static_cast<double>(num_lbl));
  }
  return curve;
}

std::string chart_data(const std::vector<StudyGroup>& groups, int64_t curve_points) {
  json list = json::array();
  for (const StudyGroup& group : groups) {
    const std::vector<ArmStyle> styles = arm_styles(group.arms);
    json arms = json::array();
    for (std::size_t i = 0; i < group.arms.size(); ++i) {
      arms.push_back({{"label", group.arms[i].label}, {"kind", to_string(group.arms[i].kind)}, {"color", styles[i].color},
                      {"marker", styles[i].marker}, {"dash", styles[i].dash}});
    }
    json runs = json::array();
    for (const StudyArm& arm : group.arms) {
      for (const std::size_t run : arm.runs) runs.push_back(run_json(group.runs[run], group, curve_points));
    }
    list.push_back({{"domains", group.domains},
                    {"numLayers", group.num_layers},
                    {"numExperts", group.num_experts},
                    {"numChosen", group.num_chosen},
                    {"arms", arms},
                    {"runs", runs}});
  }
  return json({{"groups", list}}).dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace switchyard
