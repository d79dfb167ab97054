#pragma once
// The parts of the report that say what was run: facts, claims, notices, every run with its configuration. HTML, escaped.

#include <string>
#include <vector>

#include "switchyard/report/arm_style.hpp"
#include "switchyard/report/report.hpp"
#include "switchyard/report/study.hpp"

namespace switchyard {

/// Question, notes and claims of the options; empty when there are none.
[[nodiscard]] std::string study_text(const ReportOptions& options);

/// Sizes, data, seeds and arms of a group as a list of terms; warnings below.
[[nodiscard]] std::string group_facts(const StudyGroup& group);

/// One row a run.
[[nodiscard]] std::string runs_table(const StudyGroup& group, const std::vector<ArmStyle>& styles);

/// Notices of all runs; the same text at the same step is listed once with the runs that gave it.
[[nodiscard]] std::string notices(const StudyGroup& group);

/// Command, commit, versions, processor and resolved configuration of each run, folded. Runs whose configuration is the same
/// are not joined: each must be repeatable from its own text.
[[nodiscard]] std::string run_details(const StudyGroup& group);

}  // namespace switchyard
