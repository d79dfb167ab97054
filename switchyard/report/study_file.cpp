#include "switchyard/report/study_file.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

std::string text_of(const json& object, const char* key) { return object.value(key, std::string()); }

json list_of(const json& object, const char* key) {
  const json list = object.value(key, json::array());
  SWITCHYARD_CHECK(list.is_array(), DataError, "'", key, "' is not a list");
  return list;
}

std::optional<StudyFileResult> parse_result(const json& run) {
  const json result = run.value("evaluated", json());
  if (result.is_null()) return std::nullopt;
  StudyFileResult parsed{.step = result.at("step").get<int64_t>(), .loss = {}, .specialization = result.at("specialization").get<double>()};
  if (!result.at("loss").is_null()) parsed.loss = result.at("loss").get<double>();
  return parsed;
}

/// Whether the claims of a testbed were decided by what the run has now.
bool is_same_result(const StudyFileResult& then, const std::optional<RunInput>& now) {
  if (!now || now->log.evaluations.empty()) return false;
  const EvaluationRecord& last = now->log.evaluations.back();
  const bool same_loss = then.loss ? *then.loss == last.loss : !std::isfinite(last.loss);
  return last.step == then.step && same_loss && last.specialization == then.specialization;
}

StudyFile parse_study(const json& root) {
  SWITCHYARD_CHECK(root.is_object(), DataError, "the file does not hold an object");
  const auto schema = root.value("schema", kStudyFileSchema);
  SWITCHYARD_CHECK(schema == kStudyFileSchema, DataError, "schema ", schema, ", but this version reads ", kStudyFileSchema,
                   "; use the version of switchyard that wrote it");
  StudyFile study;
  study.name = text_of(root, "name");
  study.question = text_of(root, "question");
  study.baseline = text_of(root, "baseline");
  study.notes = root.value("notes", std::vector<std::string>());
  for (const json& item : list_of(root, "arms")) {
    ArmInfo arm = {.name = item.at("name").get<std::string>(), .kind = {}, .description = text_of(item, "description")};
    if (item.contains("kind")) parse(item.at("kind").get<std::string>(), arm.kind.emplace());
    study.arms.push_back(arm);
  }
  for (const json& item : root.at("runs")) {
    study.runs.push_back({item.at("name").get<std::string>(), item.at("folder").get<std::string>(), parse_result(item)});
  }
  for (const json& item : list_of(root, "claims")) {
    ClaimInfo claim = {item.at("text").get<std::string>(), item.at("verdict").get<std::string>(), text_of(item, "detail")};
    static constexpr std::array<std::string_view, 3> kVerdicts = {"holds", "fails", "undecided"};
    SWITCHYARD_CHECK(std::find(kVerdicts.begin(), kVerdicts.end(), claim.verdict) != kVerdicts.end(), DataError,
                     "verdict '", claim.verdict, "'; expected holds, fails or undecided");
    study.claims.push_back(claim);
  }
  return study;
}

/// None for a run that was just being started, or killed then: its log has no start record.
std::optional<RunInput> find_run(const fs::path& folder, const std::string& name) {
  std::optional<RunLog> log = find_run_log(folder / "log.jsonl");
  if (!log) return std::nullopt;
  const fs::path config = folder / "config.toml";
  return RunInput{.name = name,
                  .log = *std::move(log),
                  .config_toml = path_exists(config) ? read_file(config) : "# config.toml is missing in the run folder\n"};
}

/// Arms of several testbeds stand under their own kinds, in the order of the testbeds. One name is one arm.
void add_arms(std::vector<ArmInfo>& arms, const StudyFile& study) {
  for (const ArmInfo& arm : study.arms) {
    const auto same = std::find_if(arms.begin(), arms.end(), [&](const ArmInfo& other) { return other.name == arm.name; });
    if (same == arms.end()) {
      arms.push_back(arm);
      continue;
    }
    SWITCHYARD_CHECK(!arm.kind || !same->kind || *arm.kind == *same->kind, UsageError, "arm '", arm.name, "' is of kind ",
                     to_string(*same->kind), " in one testbed and ", to_string(*arm.kind), " in '", study.name,
                     "'; report them one by one, or rename it");
  }
}

enum class ClaimText { Alone, WithStudy };

void add_claims(std::vector<ClaimInfo>& claims, const StudyFile& study, ClaimText text) {
  for (ClaimInfo claim : study.claims) {
    if (text == ClaimText::WithStudy && !study.name.empty()) claim.text = study.name + ": " + claim.text;
    claims.push_back(std::move(claim));
  }
}

void add_study(ReportSource& source, std::vector<fs::path>& folder_of_run, const fs::path& folder, size_t num_studies) {
  const StudyFile study = read_study_file(folder / kStudyFileName);
  ReportOptions& options = source.options;
  if (options.title == ReportOptions().title && !study.name.empty()) options.title = study.name;
  if (options.question.find(study.question) == kNotFound) {
    options.question += (options.question.empty() ? "" : " ") + study.question;
  }
  add_arms(options.arms, study);
  for (const std::string& note : study.notes) {
    if (std::find(options.notes.begin(), options.notes.end(), note) == options.notes.end()) options.notes.push_back(note);
  }
  add_claims(options.claims, study, num_studies > 1 ? ClaimText::WithStudy : ClaimText::Alone);
  std::vector<std::string> missing, changed;
  for (const StudyFileRun& run : study.runs) {
    std::optional<RunInput> found = find_run(folder / run.folder, run.name);
    if (run.evaluated && !is_same_result(*run.evaluated, found)) changed.push_back(run.name);
    if (found) {
      source.runs.push_back(*std::move(found));
      folder_of_run.push_back(folder / run.folder);
    } else {
      missing.push_back(run.name);
    }
  }
  const bool has_baseline = std::any_of(source.runs.begin(), source.runs.end(),
                                        [&](const RunInput& run) { return run.log.start.arm == study.baseline; });
  if (has_baseline && options.baseline.empty()) options.baseline = study.baseline;
  if (!changed.empty() && !study.claims.empty()) {
    options.notes.push_back(join_text("The claims were decided by earlier results of ", comma_list(changed),
                                      ", which have changed or gone since; `switchyard testbed` decides them anew."));
  }
  if (!missing.empty()) options.notes.push_back("Planned runs without a log, left out: " + comma_list(missing) + ".");
}

/// Folders of one name under different parents are named by their path. A folder given twice stays double: an error later.
void make_names_distinct(ReportSource& source, const std::vector<fs::path>& folder_of_run) {
  std::multiset<std::string> names;
  for (const RunInput& run : source.runs) names.insert(run.name);
  for (std::size_t i = 0; i < source.runs.size(); ++i) {
    if (names.count(source.runs[i].name) < 2) continue;
    source.runs[i].name = folder_of_run[i].lexically_normal().generic_string();
  }
}

}  // namespace

StudyFile read_study_file(const fs::path& path) {
  try {
    return parse_study(json::parse(read_file(path)));
  } catch (const json::exception& error) {
    throw DataError(join_text(path.string(), ": ", without_error_name(error.what()), "; run the testbed again, or report its run folders one by one"));
  } catch (const Error& error) {
    throw DataError(join_text(path.string(), ": ", error.what()));
  }
}

ReportSource read_report_source(const std::vector<fs::path>& folders, ReportOptions options) {
  ReportSource source;
  source.options = std::move(options);
  std::vector<fs::path> folder_of_run;
  const auto num_studies = static_cast<size_t>(
      std::count_if(folders.begin(), folders.end(), [](const fs::path& folder) { return path_exists(folder / kStudyFileName); }));
  for (const fs::path& folder : folders) {
    if (path_exists(folder / kStudyFileName)) {
      add_study(source, folder_of_run, folder, num_studies);
    } else {
      std::optional<RunInput> found = find_run(folder, folder_name(folder));
      SWITCHYARD_CHECK(found, UsageError, "'", folder.string(), "' is neither a run folder (log.jsonl) nor a testbed folder (",
                       kStudyFileName, "); give folders that `switchyard train` or `switchyard testbed` wrote");
      source.runs.push_back(*std::move(found));
      folder_of_run.push_back(folder);
    }
  }
  make_names_distinct(source, folder_of_run);
  return source;
}

}  // namespace switchyard
