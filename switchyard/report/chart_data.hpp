#pragma once
// The numbers behind the charts as JSON, read by the scripts in the file. Values are rounded to four significant digits or
// more; a number that does not exist or is not finite is null.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/report/study.hpp"

namespace switchyard {

/// A training curve, thinned: point i is the mean over `window` consecutive logged steps (the last over what is left), at
/// the last of these steps.
struct ThinCurve {
  std::size_t window = 1;
  std::vector<double> step;
  std::vector<double> loss;
  std::vector<double> lbl;  // NaN in a window without any
  std::vector<double> max_vio_step;
  std::vector<double> max_vio_micro_batch;
};

/// @param max_points  at least 1
[[nodiscard]] ThinCurve thin_curve(const std::vector<StepRecord>& steps, int64_t max_points);

/// {"groups": [...]}; script form is described in charts.js. Valid UTF-8, not yet escaped for a script element.
[[nodiscard]] std::string chart_data(const std::vector<StudyGroup>& groups, int64_t curve_points);

}  // namespace switchyard
