#include "switchyard/report/study_file.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"

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
    study.runs.push_back({item.at("name").get<std::string>(), item.at("folder").get<std::string>()});
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

// A run that is just being started has an empty log.
bool has_log(const fs::path& folder) {
  const fs::path log = folder / "log.jsonl";
  return fs::is_regular_file(log) && fs::file_size(log) > 0;
}

RunInput read_run(const fs::path& folder, const std::string& name) {
  RunInput run;
  run.name = name;
  run.log = read_run_log(folder / "log.jsonl");
  const fs::path config = folder / "config.toml";
  run.config_toml = fs::exists(config) ? read_file(config) : "# config.toml is missing in the run folder\n";
  return run;
}

void add_study(ReportSource& source, std::vector<fs::path>& folder_of_run, const fs::path& folder) {
  const StudyFile study = read_study_file(folder / kStudyFileName);
  ReportOptions& options = source.options;
  const auto fill = [](auto& field, const auto& value) {
    if (field.empty()) field = value;
  };
  if (options.title == ReportOptions().title && !study.name.empty()) options.title = study.name;
  fill(options.question, study.question);
  fill(options.arms, study.arms);
  options.notes.insert(options.notes.end(), study.notes.begin(), study.notes.end());
  options.claims.insert(options.claims.end(), study.claims.begin(), study.claims.end());
  std::string missing;
  for (const StudyFileRun& run : study.runs) {
    if (has_log(folder / run.folder)) {
      source.runs.push_back(read_run(folder / run.folder, run.name));
      folder_of_run.push_back(folder / run.folder);
    } else {
      missing += (missing.empty() ? "" : ", ") + run.name;
    }
  }
  const bool has_baseline = std::any_of(source.runs.begin(), source.runs.end(),
                                        [&](const RunInput& run) { return run.log.start.arm == study.baseline; });
  if (has_baseline) fill(options.baseline, study.baseline);
  if (!missing.empty()) options.notes.push_back("Planned runs without a log, left out: " + missing + ".");
}

std::string folder_name(const fs::path& folder) {
  const fs::path plain = fs::absolute(folder).lexically_normal();
  return plain.has_filename() ? plain.filename().string() : plain.parent_path().filename().string();
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
    throw DataError(join_text(path.string(), ": ", error.what(), "; run the testbed again, or report its run folders one by one"));
  } catch (const Error& error) {
    throw DataError(join_text(path.string(), ": ", error.what()));
  }
}

ReportSource read_report_source(const std::vector<fs::path>& folders, ReportOptions options) {
  ReportSource source;
  source.options = std::move(options);
  std::vector<fs::path> folder_of_run;
  for (const fs::path& folder : folders) {
    if (fs::exists(folder / kStudyFileName)) {
      add_study(source, folder_of_run, folder);
    } else {
      SWITCHYARD_CHECK(has_log(folder), UsageError, "'", folder.string(), "' is neither a run folder (log.jsonl) nor a testbed folder (",
                       kStudyFileName, "); give folders that `switchyard train` or `switchyard testbed` wrote");
      source.runs.push_back(read_run(folder, folder_name(folder)));
      folder_of_run.push_back(folder);
    }
  }
  make_names_distinct(source, folder_of_run);
  return source;
}

}  // namespace switchyard
