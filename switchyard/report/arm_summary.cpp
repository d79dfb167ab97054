#include "switchyard/report/arm_summary.hpp"

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using Value = std::optional<double>;

template <double EvaluationRecord::* Field>
Value of_model(const StudyRun& run) {
  const EvaluationRecord* evaluation = run.evaluation();
  return evaluation == nullptr ? Value() : Value(evaluation->*Field);
}

template <double LoadMetrics::* Field>
Value of_global_load(const StudyRun& run) {
  const EvaluationRecord* evaluation = run.evaluation();
  return evaluation == nullptr || evaluation->layers.empty() ? Value() : Value(evaluation->global.*Field);
}

template <double LoadMetrics::* Field>
Value of_micro_batch_load(const StudyRun& run) {
  const EvaluationRecord* evaluation = run.evaluation();
  return evaluation == nullptr || evaluation->layers.empty() ? Value() : Value(evaluation->micro_batch.*Field);
}

template <double LayerEvaluation::* Field>
Value mean_over_layers(const StudyRun& run) {
  const EvaluationRecord* evaluation = run.evaluation();
  if (evaluation == nullptr || evaluation->layers.empty()) return {};
  double sum = 0.0;
  for (const LayerEvaluation& layer : evaluation->layers) sum += layer.*Field;
  return sum / static_cast<double>(evaluation->layers.size());
}

// Domains and experts are needed for what compares them.
template <double EvaluationRecord::* Field>
Value of_routing(const StudyRun& run) {
  const EvaluationRecord* evaluation = run.evaluation();
  const bool can_specialize = evaluation != nullptr && !evaluation->layers.empty() && evaluation->domains.size() > 1;
  return can_specialize ? Value(evaluation->*Field) : Value();
}

Value training_lbl(const StudyRun& run) {
  const std::vector<StepRecord>& steps = run.input.log.steps;
  double sum = 0.0;
  int64_t count = 0;
  for (std::size_t i = steps.size() - last_tenth(steps.size()); i < steps.size(); ++i) {
    if (!steps[i].lbl) continue;
    sum += *steps[i].lbl;
    ++count;
  }
  return count == 0 ? Value() : Value(sum / static_cast<double>(count));
}

Value training_speed(const StudyRun& run) {
  const std::vector<StepRecord>& steps = run.input.log.steps;
  if (steps.empty()) return {};
  std::vector<double> speeds;
  for (const StepRecord& step : steps) speeds.push_back(step.tokens_per_second);
  std::sort(speeds.begin(), speeds.end());
  return (speeds[(speeds.size() - 1) / 2] + speeds[speeds.size() / 2]) / 2.0;
}

std::vector<RunMetric> pick(const std::vector<std::string_view>& names) {
  std::vector<RunMetric> metrics;
  for (const std::string_view name : names) metrics.push_back(find_metric(name));
  return metrics;
}

std::vector<double> values_of(const StudyGroup& group, const StudyArm& arm, const RunMetric& metric) {
  std::vector<double> values;
  for (const std::size_t run : arm.counted) {
    if (const Value value = metric.value(group.runs[run])) values.push_back(*value);
  }
  return values;
}

const std::vector<RunMetric>& all_metrics() {
  static const std::vector<RunMetric> metrics = {
      {"specialization", "S", "0 null, 1 attainable", 3, of_routing<&EvaluationRecord::specialization>},
      {"max_vio_global", "MaxVio, global", "all sequences", 2, of_global_load<&LoadMetrics::max_vio>},
      {"max_vio_micro_batch", "MaxVio, micro", "mean of micro-batches", 2,
       of_micro_batch_load<&LoadMetrics::max_vio>},
      {"lbl", "LBL", "training, own scope", 3, training_lbl},
      {"loss", "Loss", "nats a token", 3, of_model<&EvaluationRecord::loss>},
      {"perplexity", "Perplexity", "", 1, of_model<&EvaluationRecord::perplexity>},
      {"purity", "Purity", "", 3, of_routing<&EvaluationRecord::purity>},
      {"agreement", "Agreement", "with prescribed", 3, of_routing<&EvaluationRecord::agreement>},
      {"dead_experts", "Dead experts", "a layer, global", 1, of_global_load<&LoadMetrics::dead_experts>},
      {"information", "I", "nats", 3, mean_over_layers<&LayerEvaluation::information>},
      {"information_null", "I, null", "labels permuted over documents", 3, mean_over_layers<&LayerEvaluation::information_null>},
      {"information_ceiling", "I, ceiling", "attainable, nats", 3, mean_over_layers<&LayerEvaluation::information_ceiling>},
      {"specialization_first_choice", "S, first choice", "0 null, 1 attainable", 3,
       mean_over_layers<&LayerEvaluation::specialization_first_choice>},
      {"information_first_choice", "I, first choice", "nats", 3, mean_over_layers<&LayerEvaluation::information_first_choice>},
      {"information_first_choice_null", "I, first choice, null", "labels permuted over documents", 3,
       mean_over_layers<&LayerEvaluation::information_first_choice_null>},
      {"information_first_choice_ceiling", "I, first choice, ceiling", "attainable, nats", 3,
       mean_over_layers<&LayerEvaluation::information_first_choice_ceiling>},
      {"purity_null", "Purity, null", "labels permuted over documents", 3, mean_over_layers<&LayerEvaluation::purity_null>},
      {"purity_ceiling", "Purity, ceiling", "attainable", 3, mean_over_layers<&LayerEvaluation::purity_ceiling>},
      {"agreement_floor", "Agreement, floor", "domain unknown", 3, mean_over_layers<&LayerEvaluation::agreement_floor>},
      {"utilization", "Utilisation", "global", 3, of_global_load<&LoadMetrics::utilization>},
      {"utilization_micro_batch", "Utilisation", "micro-batch", 3, of_micro_batch_load<&LoadMetrics::utilization>},
      {"entropy", "Load entropy", "global, nats", 3, of_global_load<&LoadMetrics::entropy>},
      {"variation", "Load variation", "global", 3, of_global_load<&LoadMetrics::variation>},
      {"margin", "Top-k margin", "probability", 4, of_model<&EvaluationRecord::margin>},
      {"speed", "Tokens/s", "training, median of steps", 0, training_speed},
  };
  return metrics;
}

}  // namespace

const RunMetric& find_metric(std::string_view name) {
  const std::vector<RunMetric>& metrics = all_metrics();
  const auto found = std::find_if(metrics.begin(), metrics.end(), [&](const RunMetric& metric) { return metric.name == name; });
  SWITCHYARD_CHECK(found != metrics.end(), StateError, "the report knows no metric '", name, "'");
  return *found;
}

const std::vector<RunMetric>& summary_metrics() {
  static const std::vector<RunMetric> metrics = pick({"specialization", "max_vio_global", "max_vio_micro_batch", "lbl", "loss",
                                                      "perplexity", "purity", "agreement", "dead_experts"});
  return metrics;
}

const std::vector<RunMetric>& bound_metrics() {
  static const std::vector<RunMetric> metrics =
      pick({"information", "information_null", "information_ceiling", "specialization_first_choice", "information_first_choice",
            "information_first_choice_null", "information_first_choice_ceiling", "purity_null", "purity_ceiling", "agreement_floor"});
  return metrics;
}

const std::vector<RunMetric>& further_metrics() {
  static const std::vector<RunMetric> metrics =
      pick({"utilization", "utilization_micro_batch", "entropy", "variation", "margin", "speed"});
  return metrics;
}

const std::vector<RunMetric>& paired_metrics() {
  static const std::vector<RunMetric> metrics =
      pick({"specialization", "max_vio_global", "max_vio_micro_batch", "loss", "purity", "agreement"});
  return metrics;
}

Summary summarize_arm(const StudyGroup& group, const StudyArm& arm, const RunMetric& metric) {
  return summarize(values_of(group, arm, metric));
}

Summary summarize_domain_loss(const StudyGroup& group, const StudyArm& arm, std::size_t domain) {
  std::vector<double> values;
  for (const std::size_t run : arm.counted) values.push_back(group.runs[run].evaluation()->domains.at(domain).loss);
  return summarize(values);
}

PairedDifference paired_difference(const StudyGroup& group, const StudyArm& arm, const StudyArm& baseline,
                                   const RunMetric& metric) {
  PairedDifference result;
  // Unfinished runs are models of different age; their differences say nothing about the arms.
  if (arm.is_partial || baseline.is_partial) return result;
  std::vector<double> left;
  std::vector<double> right;
  for (const std::size_t run : arm.counted) {
    for (const std::size_t other : baseline.counted) {
      const int64_t seed = group.runs[run].input.log.start.seed;
      const Value here = metric.value(group.runs[run]);
      const Value there = metric.value(group.runs[other]);
      if (seed != group.runs[other].input.log.start.seed || !here || !there) continue;
      left.push_back(*here);
      right.push_back(*there);
      result.seeds.push_back(seed);
      result.num_positive += *here > *there ? 1 : 0;
      result.num_negative += *here < *there ? 1 : 0;
    }
  }
  result.summary = summarize_differences(left, right);
  return result;
}

std::size_t last_tenth(std::size_t num_steps) {
  return num_steps == 0 ? 0 : std::max<std::size_t>(1, num_steps / 10);
}

}  // namespace switchyard
