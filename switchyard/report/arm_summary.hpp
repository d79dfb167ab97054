#pragma once
// Numbers of a run, of an arm over its seeds, and of two arms over the seeds they share.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "switchyard/measure/summary.hpp"
#include "switchyard/report/study.hpp"

namespace switchyard {

/// One number a run has. A run without an evaluation, or a value that does not exist there, gives nothing.
struct RunMetric {
  std::string_view name;
  std::string_view label;  // column heading
  std::string_view scope;  // second line of the heading: over what, unit, range; what the caption says is not repeated
  int decimals = 3;
  std::optional<double> (*value)(const StudyRun& run);
};

/// Columns of the summary table.
[[nodiscard]] const std::vector<RunMetric>& summary_metrics();
/// What stands behind S, purity and agreement: their nulls, floors and ceilings.
[[nodiscard]] const std::vector<RunMetric>& bound_metrics();
/// Further measures of balance, and the speed.
[[nodiscard]] const std::vector<RunMetric>& further_metrics();
/// Columns of the table of paired differences.
[[nodiscard]] const std::vector<RunMetric>& paired_metrics();
/// @throws StateError for an unknown name
[[nodiscard]] const RunMetric& find_metric(std::string_view name);

/// Over the arm's counted runs that have the value. `count` is the number of these.
[[nodiscard]] Summary summarize_arm(const StudyGroup& group, const StudyArm& arm, const RunMetric& metric);

/// The arm's mean held-out loss on one domain.
[[nodiscard]] Summary summarize_domain_loss(const StudyGroup& group, const StudyArm& arm, std::size_t domain);

/// arm minus baseline over the seeds that both have.
struct PairedDifference {
  Summary summary;
  std::vector<int64_t> seeds;
  int64_t num_positive = 0;
  int64_t num_negative = 0;
};
[[nodiscard]] PairedDifference paired_difference(const StudyGroup& group, const StudyArm& arm, const StudyArm& baseline,
                                                 const RunMetric& metric);

/// Steps of the log that the training LBL of the summary is a mean over: the last tenth, at least one.
[[nodiscard]] std::size_t last_tenth(std::size_t num_steps);

}  // namespace switchyard
