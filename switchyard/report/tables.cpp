#include "switchyard/report/tables.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/report/arm_summary.hpp"
#include "switchyard/report/escape.hpp"

namespace switchyard {
namespace {

constexpr std::string_view kNone = "<span class=\"none\">&ndash;</span>";

struct KindHeading {
  ArmKind kind;
  std::string_view heading;
};
constexpr std::array<KindHeading, 3> kKindHeadings = {{
    {ArmKind::Trained, "Trained routers"},
    {ArmKind::Floor, "Floors: what no specialisation, or none that was learned, looks like"},
    {ArmKind::Ceiling, "Ceiling: prescribed routing"},
}};

std::string with_sign(double value, int decimals) {
  const std::string text = format_number(value, decimals);
  const bool is_zero = text.find_first_of("123456789") == std::string::npos;
  return value > 0.0 && !is_zero ? "+" + text : text;
}

std::string cell(const Summary& summary, int decimals) {
  if (summary.count == 0) return join_text("<td>", kNone, "</td>");
  std::string text = format_number(summary.mean, decimals);
  if (summary.interval) {
    text += join_text("<small>[", format_number(summary.interval->lower, decimals), ", ",
                      format_number(summary.interval->upper, decimals), "]</small>");
  }
  return "<td>" + text + "</td>";
}

std::string signs(const PairedDifference& difference) {
  const auto count = static_cast<int64_t>(difference.seeds.size());
  if (count == 1) return "one seed";
  if (difference.num_positive == count) return join_text("higher on all ", count);
  if (difference.num_negative == count) return join_text("lower on all ", count);
  const int64_t num_equal = count - difference.num_positive - difference.num_negative;
  if (num_equal == count) return join_text("equal on all ", count);
  std::vector<std::string> parts;
  if (difference.num_positive > 0) parts.push_back(join_text("higher on ", difference.num_positive));
  if (difference.num_negative > 0) parts.push_back(join_text("lower on ", difference.num_negative));
  if (num_equal > 0) parts.push_back(join_text("equal on ", num_equal));
  return comma_list(parts);
}

std::string cell(const PairedDifference& difference, int decimals) {
  if (difference.seeds.empty()) return join_text("<td>", kNone, "</td>");
  std::string text = with_sign(difference.summary.mean, decimals);
  if (const auto& interval = difference.summary.interval) {
    text += join_text("<small>[", with_sign(interval->lower, decimals), ", ", with_sign(interval->upper, decimals), "]</small>");
  }
  return join_text("<td>", text, "<small>", signs(difference), "</small></td>");
}

std::string arm_heading(const StudyGroup& group, const StudyArm& arm, const ArmStyle& style) {
  const StudyRun& run = group.runs[arm.runs.front()];
  const StartRecord& start = run.input.log.start;
  std::string below = arm.description.empty() ? "" : "<small>" + html_escape(arm.description) + "</small>";
  below += join_text("<small>", html_escape(start.router), "; ", html_escape(balancing_text(start, run.settings)), "</small>");
  if (arm.is_partial) below += "<small class=\"flag\">unfinished: not a result</small>";
  return join_text("<th scope=\"row\">", marker_svg(style), html_escape(arm.label), below, "</th>");
}

std::string metric_headings(const std::vector<RunMetric>& metrics) {
  std::string html;
  for (const RunMetric& metric : metrics) {
    html += join_text("<th scope=\"col\">", metric.label);
    if (!metric.scope.empty()) html += join_text("<small>", metric.scope, "</small>");
    html += "</th>";
  }
  return html;
}

// The scroll region can be reached by keyboard, or wide tables could not be read without a mouse.
std::string table(const std::string& label, const std::string& caption, const std::string& head, const std::string& body) {
  return join_text("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"", label, "\"><table><caption>", caption,
                   "</caption><thead><tr>", head, "</tr></thead>", body, "</table></div>\n");
}

std::string held_out_text(const StudyGroup& group) {
  const std::string sequences = evaluated_numbers(group, &EvaluationRecord::sequences);
  if (sequences.empty()) return "held-out text (none was evaluated)";
  return join_text(sequences, " held-out sequences (", evaluated_numbers(group, &EvaluationRecord::tokens), " scored tokens)");
}

/// One tbody a kind, with a heading where there is more than one kind.
template <typename RowOf>
std::string rows_by_kind(const StudyGroup& group, std::size_t num_columns, RowOf row_of) {
  std::string html;
  for (const KindHeading& kind : kKindHeadings) {
    std::string rows;
    for (std::size_t i = 0; i < group.arms.size(); ++i) {
      if (group.arms[i].kind == kind.kind) rows += row_of(i);
    }
    if (rows.empty()) continue;
    html += join_text("<tbody class=\"", to_string(kind.kind), "\"><tr class=\"kind\"><th scope=\"rowgroup\" colspan=\"", num_columns,
                      "\">", kind.heading, "</th></tr>", rows, "</tbody>");
  }
  return html;
}

std::string metric_table(const StudyGroup& group, const std::vector<ArmStyle>& styles, const std::vector<RunMetric>& metrics,
                         const std::string& label, const std::string& caption) {
  const std::string body = rows_by_kind(group, metrics.size() + 2, [&](std::size_t i) {
    const StudyArm& arm = group.arms[i];
    std::string row = "<tr>" + arm_heading(group, arm, styles[i]);
    row += "<td class=\"seeds\">" + list_seeds(counted_seeds(group, arm)) + "</td>";
    for (const RunMetric& metric : metrics) row += cell(summarize_arm(group, arm, metric), metric.decimals);
    return row + "</tr>";
  });
  return table(label, caption, "<th scope=\"col\">Arm</th><th scope=\"col\">Seeds</th>" + metric_headings(metrics), body);
}

}  // namespace

std::string format_number(double value, int decimals) {
  if (!std::isfinite(value)) return "not finite";
  std::array<char, 64> buffer{};
  if (std::abs(value) >= 1e6) {
    std::snprintf(buffer.data(), buffer.size(), "%.3e", value);
  } else {
    std::snprintf(buffer.data(), buffer.size(), "%.*f", decimals, value);
  }
  const std::string text = without_sign_of_zero(buffer.data());
  return text.front() == '-' ? "&minus;" + text.substr(1) : text;
}

std::string with_thousands(int64_t value) { return grouped_digits(value, "&thinsp;"); }

std::string list_seeds(std::vector<int64_t> seeds) {
  if (seeds.empty()) return "none";
  std::sort(seeds.begin(), seeds.end());
  const bool is_range = seeds.size() > 2 && seeds.back() - seeds.front() == static_cast<int64_t>(seeds.size()) - 1;
  if (is_range) return join_text(seeds.front(), "&ndash;", seeds.back());
  return joined(seeds, ", ", [](int64_t seed) { return std::to_string(seed); });
}

std::vector<int64_t> counted_seeds(const StudyGroup& group, const StudyArm& arm) {
  std::vector<int64_t> seeds;
  for (const std::size_t run : arm.counted) seeds.push_back(group.runs[run].input.log.start.seed);
  return seeds;
}

std::string evaluated_numbers(const StudyGroup& group, int64_t EvaluationRecord::* number) {
  std::set<int64_t> numbers;
  for (const StudyRun& run : group.runs) {
    if (const EvaluationRecord* evaluation = run.evaluation()) numbers.insert(evaluation->*number);
  }
  return joined(numbers, " or ", with_thousands);
}

std::string summary_table(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  return metric_table(group, styles, summary_metrics(), "Summary of the arms",
                      join_text("Last evaluation on ", held_out_text(group),
                                ", mean over the MoE layers and then over seeds. Brackets: 95 % t-interval over seeds, where there "
                                "are two or more. LBL: training text, mean of the last tenth of the steps. Loss and perplexity are "
                                "given, not ranked."));
}

std::string further_tables(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  const std::string scope = held_out_text(group) + ", mean over the MoE layers and then over seeds; brackets: 95 % t-interval.";
  return metric_table(group, styles, bound_metrics(), "Nulls, floors and ceilings",
                      "What S, purity and agreement are measured against. " + scope) +
         metric_table(group, styles, further_metrics(), "Further measures",
                      join_text("Measures of balance. ", scope,
                                " Tokens/s is the speed of training on the machine that ran it, other work included."));
}

std::string paired_table(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  const StudyArm& baseline = group.arms[group.baseline];
  const std::vector<RunMetric>& metrics = paired_metrics();
  std::string body;
  for (std::size_t i = 0; i < group.arms.size(); ++i) {
    const PairedDifference first = paired_difference(group, group.arms[i], baseline, find_metric("loss"));
    if (i == group.baseline || first.seeds.empty()) continue;
    body += "<tr>" + arm_heading(group, group.arms[i], styles[i]) + "<td class=\"seeds\">" + list_seeds(first.seeds) + "</td>";
    for (const RunMetric& metric : metrics) {
      body += cell(paired_difference(group, group.arms[i], baseline, metric), metric.decimals);
    }
    body += "</tr>";
  }
  const std::string name = html_escape(baseline.label);
  if (body.empty()) return join_text("<p class=\"empty\">No other finished arm shares a seed with ", name, ".</p>\n");
  return table("Paired differences",
               join_text("Each arm minus <b>", name, "</b> on the same seed",
                         group.same_beginning ? " (same data order, same initial weights)" : "",
                         ", mean over the seeds that both have; ", held_out_text(group),
                         ", mean of layers. Brackets: 95 % t-interval of the mean difference; one that holds 0 shows no difference, "
                         "and one from two seeds is wide."),
               "<th scope=\"col\">Arm</th><th scope=\"col\">Shared seeds</th>" + metric_headings(metrics), "<tbody>" + body + "</tbody>");
}

std::string domain_loss_table(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  std::string head = "<th scope=\"col\">Arm</th><th scope=\"col\">Seeds</th>";
  for (const std::string& domain : group.domains) head += "<th scope=\"col\">" + html_escape(domain) + "</th>";
  const std::string body = rows_by_kind(group, group.domains.size() + 2, [&](std::size_t i) {
    const StudyArm& arm = group.arms[i];
    std::string row = "<tr>" + arm_heading(group, arm, styles[i]);
    row += "<td class=\"seeds\">" + list_seeds(counted_seeds(group, arm)) + "</td>";
    for (std::size_t d = 0; d < group.domains.size(); ++d) row += cell(summarize_domain_loss(group, arm, d), 3);
    return row + "</tr>";
  });
  return table("Loss per domain",
               join_text("Held-out loss in nats per scored token, mean over seeds; brackets: 95 % t-interval over seeds. Last "
                         "evaluation on ", held_out_text(group), "."),
               head, body);
}

std::string arm_key(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  std::string html = "<ul class=\"key\">";
  for (std::size_t i = 0; i < group.arms.size(); ++i) {
    html += join_text("<li><button type=\"button\" data-arm=\"", i, "\" aria-pressed=\"true\">", marker_svg(styles[i]),
                      html_escape(group.arms[i].label), "</button></li>");
  }
  return html + "</ul>\n";
}

}  // namespace switchyard
