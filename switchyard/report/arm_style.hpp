#pragma once
// One colour and one marker for each arm, the same in every table and chart.

#include <string>
#include <vector>

#include "switchyard/report/study.hpp"

namespace switchyard {

/// Trained arms take the colours in turn, floors are grey, the ceiling has the colour of the text; so three kinds differ at
/// a glance. Markers differ too, because colours alone do not serve everyone, and repeat only after the eighth arm of a kind.
struct ArmStyle {
  std::string color;   // name of a CSS custom property of report.css, "--arm-1"
  std::string marker;  // Plotly's name of the symbol
  std::string dash;    // Plotly's name of the line style
};

[[nodiscard]] std::vector<ArmStyle> arm_styles(const std::vector<StudyArm>& arms);

/// The marker as a small inline SVG for tables, hidden from screen readers (the name stands beside it).
[[nodiscard]] std::string marker_svg(const ArmStyle& style);

}  // namespace switchyard
