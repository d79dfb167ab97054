#pragma once
// Tables of a group as HTML. They stand in the file itself, so they are there without scripts, in print and for a screen
// reader. All text from data is escaped.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/report/arm_style.hpp"
#include "switchyard/report/study.hpp"

namespace switchyard {

/// Fixed decimals with a true minus sign; exponent form from a million on; "not finite" for NaN and infinity.
[[nodiscard]] std::string format_number(double value, int decimals);

/// 5783040 with a thin space every three digits, as HTML.
[[nodiscard]] std::string with_thousands(int64_t value);

/// What the evaluated runs have there, each number once, as HTML: "64 or 512"; empty where none was evaluated.
[[nodiscard]] std::string evaluated_numbers(const StudyGroup& group, int64_t EvaluationRecord::* number);

/// One row an arm: mean over seeds, below it the 95 % t-interval where there are two seeds or more.
[[nodiscard]] std::string summary_table(const StudyGroup& group, const std::vector<ArmStyle>& styles);
[[nodiscard]] std::string further_tables(const StudyGroup& group, const std::vector<ArmStyle>& styles);

/// Each arm minus the baseline over shared seeds. A sentence instead where no arm shares a seed with it.
[[nodiscard]] std::string paired_table(const StudyGroup& group, const std::vector<ArmStyle>& styles);

/// Rows arms, columns domains.
[[nodiscard]] std::string domain_loss_table(const StudyGroup& group, const std::vector<ArmStyle>& styles);

/// The key of marker and colour, shared by the charts.
[[nodiscard]] std::string arm_key(const StudyGroup& group, const std::vector<ArmStyle>& styles);

/// "0", "0, 1" or "0-4" for a sorted run of numbers; "none" without any.
[[nodiscard]] std::string list_seeds(std::vector<int64_t> seeds);

/// Seeds of the arm's counted runs.
[[nodiscard]] std::vector<int64_t> counted_seeds(const StudyGroup& group, const StudyArm& arm);

}  // namespace switchyard
