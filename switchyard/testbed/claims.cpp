#include "switchyard/testbed/claims.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/testbed/config.hpp"
#include "switchyard/testbed/number_text.hpp"

namespace switchyard {
namespace {

struct ClaimMetric {
  const char* name;
  double (*value)(const EvaluationRecord&);
};

constexpr std::array<ClaimMetric, 11> kMetrics = {{
    {"specialization", [](const EvaluationRecord& record) { return record.specialization; }},
    {"purity", [](const EvaluationRecord& record) { return record.purity; }},
    {"agreement", [](const EvaluationRecord& record) { return record.agreement; }},
    {"margin", [](const EvaluationRecord& record) { return record.margin; }},
    {"loss", [](const EvaluationRecord& record) { return record.loss; }},
    {"perplexity", [](const EvaluationRecord& record) { return record.perplexity; }},
    {"max_vio", [](const EvaluationRecord& record) { return record.global.max_vio; }},
    {"max_vio_micro_batch", [](const EvaluationRecord& record) { return record.micro_batch.max_vio; }},
    {"utilization", [](const EvaluationRecord& record) { return record.global.utilization; }},
    {"dead_experts", [](const EvaluationRecord& record) { return record.global.dead_experts; }},
    {"entropy", [](const EvaluationRecord& record) { return record.global.entropy; }},
}};

const RunResultRow* find_row(const std::vector<RunResultRow>& rows, const std::string& arm, int64_t seed) {
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const RunResultRow& row) { return row.arm == arm && row.seed == seed; });
  return found == rows.end() ? nullptr : &*found;
}

bool is_inside(const ClaimConfig& claim, double value) { return value >= claim.at_least && value <= claim.at_most; }

std::string bounds_text(const ClaimConfig& claim) {
  std::vector<std::string> bounds;
  if (std::isfinite(claim.at_least)) bounds.push_back("at least " + toml_value(claim.at_least));
  if (std::isfinite(claim.at_most)) bounds.push_back("at most " + toml_value(claim.at_most));
  return bounds.size() == 2 ? bounds[0] + " and " + bounds[1] : bounds.at(0);
}

// Three decimals, or as many more as it takes for the text to lie on the same side of the bounds as the value.
std::string value_text(const ClaimConfig& claim, double value) {
  constexpr int kMostDecimals = 17;
  for (int decimals = 3; decimals < kMostDecimals; ++decimals) {
    const std::string text = number_text(value, decimals);
    if (!std::isfinite(value) || is_inside(claim, std::stod(text)) == is_inside(claim, value)) return text;
  }
  return number_text(value, kMostDecimals);
}

std::string claim_text(const ClaimConfig& claim) {
  if (!claim.text.empty()) return claim.text;
  const std::string left = join_text(claim.metric, " of ", claim.arm);
  if (claim.against.empty()) return join_text(left, " is ", bounds_text(claim));
  return join_text(left, " minus that of ", claim.against, " is ", bounds_text(claim));
}

Verdict overall(const std::vector<ClaimSeed>& seeds) {
  const auto any = [&](Verdict verdict) {
    return std::any_of(seeds.begin(), seeds.end(), [&](const ClaimSeed& seed) { return seed.verdict == verdict; });
  };
  if (any(Verdict::Fails)) return Verdict::Fails;
  return seeds.empty() || any(Verdict::Undecided) ? Verdict::Undecided : Verdict::Holds;
}

std::string detail_text(const ClaimConfig& claim, const std::vector<ClaimSeed>& seeds) {
  std::vector<std::string> values;
  for (const ClaimSeed& seed : seeds) {
    values.push_back(join_text(seed.value ? value_text(claim, *seed.value) : "no result", " (seed ", seed.seed, ")"));
  }
  const std::string what = claim.against.empty() ? claim.metric : claim.metric + " difference";
  return join_text(what, " ", comma_list(values), "; asked: ", bounds_text(claim));
}

}  // namespace

std::vector<std::string> claim_metric_names() {
  std::vector<std::string> names;
  for (const ClaimMetric& metric : kMetrics) names.emplace_back(metric.name);
  return names;
}

double claim_metric(const EvaluationRecord& evaluation, const std::string& name) {
  for (const ClaimMetric& metric : kMetrics) {
    if (name == metric.name) return metric.value(evaluation);
  }
  throw UsageError(unknown_name("metric", name, claim_metric_names()));
}

std::string to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::Holds: return "holds";
    case Verdict::Fails: return "fails";
    case Verdict::Undecided: break;
  }
  return "undecided";
}

ClaimResult check_claim(const ClaimConfig& claim, const std::vector<RunResultRow>& rows) {
  ClaimResult result;
  result.text = claim_text(claim);
  for (const RunResultRow& row : rows) {
    if (row.arm != claim.arm) continue;
    const RunResultRow* other = claim.against.empty() ? nullptr : find_row(rows, claim.against, row.seed);
    if (!claim.against.empty() && other == nullptr) continue;
    ClaimSeed seed;
    seed.seed = row.seed;
    if (row.evaluation && (claim.against.empty() || other->evaluation)) {
      seed.value = claim_metric(*row.evaluation, claim.metric);
      if (!claim.against.empty()) *seed.value -= claim_metric(*other->evaluation, claim.metric);
      seed.verdict = is_inside(claim, *seed.value) && std::isfinite(*seed.value) ? Verdict::Holds : Verdict::Fails;
    }
    result.seeds.push_back(seed);
  }
  result.verdict = overall(result.seeds);
  result.detail = detail_text(claim, result.seeds);
  return result;
}

}  // namespace switchyard
