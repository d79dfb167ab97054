#pragma once
// Run folders -> one self-contained HTML file: no request to any network, readable in print, by keyboard, in light and dark.
// It reads only run logs and the resolved configuration, so it works on runs of another machine.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/measure/arm_kind.hpp"
#include "switchyard/measure/run_log.hpp"

namespace switchyard {

struct RunInput {
  std::string name;         // names the run in the report; distinct
  RunLog log;
  std::string config_toml;  // the resolved configuration, shown as it is
};

struct ArmInfo {
  std::string name;                // as in StartRecord::arm
  std::optional<ArmKind> kind;     // none: told from the router, see infer_arm_kind
  std::string description;         // one line; may be empty
};

/// A claim of the testbed as it was evaluated there; the report prints it and judges nothing itself.
struct ClaimInfo {
  std::string text;
  std::string verdict;  // "holds", "fails" or "undecided"
  std::string detail;
};

struct ReportOptions {
  std::string title = "Switchyard report";
  std::string question;               // what the runs were to answer; may be empty
  std::vector<ArmInfo> arms;          // order of display; arms that are not listed follow
  std::string baseline;               // arm that paired differences are taken against; empty: the first trained arm
  std::vector<std::string> notes;     // what a reader must know about the whole study
  std::vector<ClaimInfo> claims;
  int64_t curve_points = 400;         // longer curves are averaged over equal windows, and say so
};

/// The report as UTF-8 HTML. Equal input gives equal bytes. Runs whose domains, experts, layers or data differ are shown in
/// groups of their own, never averaged together.
/// @throws UsageError without runs, for two runs of one name, or for a baseline that no run has
/// @throws DataError for a log that contradicts itself (a table whose sides are not domains x experts)
[[nodiscard]] std::string build_report(const std::vector<RunInput>& runs, const ReportOptions& options);

struct ReportSource {
  std::vector<RunInput> runs;
  ReportOptions options;
};

/// Reads `config.toml` and `log.jsonl` of each run folder. A folder that holds `testbed.json` stands for the runs below it,
/// and adds its question, arms, notes and claims to the options; title and baseline are the first one's where they are empty
/// (study_file.hpp). Claims of several testbeds name theirs. Runs of a testbed that have no log yet are left out, and a note says which.
/// @throws UsageError for a folder that is neither, and for an arm of two kinds
[[nodiscard]] ReportSource read_report_source(const std::vector<std::filesystem::path>& folders, ReportOptions options = {});

/// read_report_source, build_report, and the file written whole or not at all.
void write_report(const std::vector<std::filesystem::path>& folders, const std::filesystem::path& out_path,
                  const ReportOptions& options = {});

/// For runs without a testbed: the reference router is a ceiling, routers that do not learn are floors, all else is trained.
[[nodiscard]] ArmKind infer_arm_kind(const std::string& router);

}  // namespace switchyard
