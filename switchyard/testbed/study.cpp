#include "switchyard/testbed/study.hpp"

#include <map>
#include <set>

#include <nlohmann/json.hpp>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/testbed/alike.hpp"
#include "switchyard/testbed/run_folder.hpp"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kPaperCoefficient = 0.008;  // arXiv 2501.11873, section 4.1; taken as that of one layer

ArmRow make_arm_row(const ArmConfig& arm, const std::vector<RunResultRow>& results) {
  ArmRow row;
  row.arm = arm.name;
  row.kind = arm.kind;
  std::vector<const EvaluationRecord*> evaluations;
  for (const RunResultRow& result : results) {
    if (result.arm != arm.name) continue;
    ++row.num_planned;
    if (!result.evaluation) continue;
    row.seeds.push_back(result.seed);
    evaluations.push_back(&*result.evaluation);
  }
  const auto over_seeds = [&](const std::string& metric) {
    std::vector<double> values;
    for (const EvaluationRecord* evaluation : evaluations) values.push_back(claim_metric(*evaluation, metric));
    return summarize(values);
  };
  row.specialization = over_seeds("specialization");
  row.max_vio = over_seeds("max_vio");
  row.max_vio_micro_batch = over_seeds("max_vio_micro_batch");
  row.loss = over_seeds("loss");
  return row;
}

Json summary_json(const Summary& summary) {
  if (summary.count == 0) return nullptr;
  Json json = {{"mean", summary.mean}, {"seeds", summary.count}};
  if (summary.interval) json["interval_95"] = {summary.interval->lower, summary.interval->upper};
  return json;
}

Json claim_json(const ClaimResult& claim) {
  Json seeds = Json::array();
  for (const ClaimSeed& seed : claim.seeds) {
    seeds.push_back({{"seed", seed.seed},
                     {"value", seed.value ? Json(*seed.value) : Json(nullptr)},
                     {"verdict", to_string(seed.verdict)}});
  }
  return {{"text", claim.text}, {"verdict", to_string(claim.verdict)}, {"detail", claim.detail}, {"seeds", seeds}};
}

Json arm_json(const ArmConfig& arm, const ArmRow& row) {
  return {{"name", arm.name},
          {"kind", to_string(arm.kind)},
          {"description", arm.description},
          {"overrides", arm.overrides},
          {"finished_seeds", row.seeds},
          {"specialization", summary_json(row.specialization)},
          {"max_vio", summary_json(row.max_vio)},
          {"max_vio_micro_batch", summary_json(row.max_vio_micro_batch)},
          {"loss", summary_json(row.loss)}};
}

// Enough for the report to notice that the run has been evaluated anew since.
Json evaluated_json(const std::optional<EvaluationRecord>& evaluation) {
  if (!evaluation) return nullptr;
  return {{"step", evaluation->step}, {"loss", evaluation->loss}, {"specialization", evaluation->specialization}};
}

std::string coefficient_note(const std::vector<PlannedRun>& runs) {
  std::set<double> above;
  for (const PlannedRun& run : runs) {
    for (const BalanceTerm& term : all_terms(run.config.balance)) {
      const double lambda = per_layer(run.config.balance.layers, term.coefficient, run.config.model.num_moe_layers());
      if (term.method == "lbl" && lambda > kPaperCoefficient) above.insert(lambda);
    }
  }
  if (above.empty()) return "";
  const std::string values = joined(above, ", ", [](double value) { return join_text(value); });
  return join_text("The balancing coefficient (lambda of a layer ", values, ") is above the ", kPaperCoefficient,
                   " of the paper (arXiv 2501.11873), whose models train for longer: in a short run a small one does not reach "
                   "balance, and arms are only comparable at similar MaxVio.");
}

std::string composition_note(const std::vector<PlannedRun>& runs) {
  std::vector<std::string> pure, mixed;
  for (const PlannedRun& run : runs) {
    (run.config.data.batcher.composition == Composition::OneDomain ? pure : mixed).push_back(run.arm);
  }
  if (pure.empty()) return "";
  const std::string which = mixed.empty() ? "Each training micro-batch holds" : "Training micro-batches of " + arms_text(pure) + " hold";
  return which + " one domain only: the worst case for a narrow balancing scope. Mixed micro-batches make the difference between "
                 "scopes smaller.";
}

std::string evaluation_note(const std::vector<RunResultRow>& results) {
  std::map<int64_t, std::vector<std::string>> arms;  // by the number of sequences
  for (const RunResultRow& result : results) {
    if (result.evaluation) arms[result.evaluation->sequences].push_back(result.arm);
  }
  const bool alike = arms.size() == 1;
  std::erase_if(arms, [](const auto& entry) { return entry.first >= kEnoughSequences; });
  if (arms.empty()) return "";
  const std::string sequences = joined(arms, ", ", [alike](const auto& entry) {
    return alike ? join_text(entry.first) : join_text(entry.first, " (", arms_text(entry.second), ")");
  });
  return join_text("Evaluated on ", sequences, " held-out sequences; with fewer than ", kEnoughSequences,
                   " the error of evaluation is near the noise between seeds.");
}

}  // namespace

std::vector<RunResultRow> read_results(const std::filesystem::path& folder, const std::vector<PlannedRun>& runs) {
  std::vector<RunResultRow> rows;
  for (const PlannedRun& run : runs) {
    RunResultRow row{run.name, run.arm, run.seed, std::nullopt};
    if (const std::optional<RunLog> log = read_finished_log(folder / run.name)) row.evaluation = log->evaluations.back();
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<std::string> study_notes(const std::vector<PlannedRun>& runs) {
  std::vector<std::string> notes;
  for (const std::string& note : {coefficient_note(runs), composition_note(runs)}) {
    if (!note.empty()) notes.push_back(note);
  }
  for (const std::string& note : unlike_notes(runs)) notes.push_back(note);
  notes.push_back(
      "Loss is listed, not ranked: a difference of .01 nats needs from 7 to 80 paired seeds, by setting, and its sign differed "
      "between settings (docs/testbed.md).");
  return notes;
}

Study make_study(const TestbedConfig& config, const std::vector<PlannedRun>& runs, const std::vector<RunResultRow>& results) {
  Study study;
  for (const ArmConfig& arm : config.arms) study.arms.push_back(make_arm_row(arm, results));
  for (const ClaimConfig& claim : config.claims) study.claims.push_back(check_claim(claim, results));
  study.notes = study_notes(runs);
  const std::string few = evaluation_note(results);
  if (!few.empty()) study.notes.push_back(few);
  study.results = results;
  return study;
}

std::string study_json(const TestbedConfig& config, const Study& study) {
  Json json = {{"schema", 1}, {"name", config.name}, {"question", config.question}, {"baseline", config.baseline},
               {"notes", study.notes}};
  json["arms"] = Json::array();
  for (size_t index = 0; index < config.arms.size(); ++index) {
    json["arms"].push_back(arm_json(config.arms[index], study.arms[index]));
  }
  json["runs"] = Json::array();
  for (const RunResultRow& run : study.results) {
    json["runs"].push_back({{"name", run.name}, {"folder", run.name}, {"arm", run.arm}, {"seed", run.seed},
                            {"evaluated", evaluated_json(run.evaluation)}});
  }
  json["claims"] = Json::array();
  for (const ClaimResult& claim : study.claims) json["claims"].push_back(claim_json(claim));
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace switchyard
