#include "switchyard/report/run_sections.hpp"

#include <map>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/report/arm_summary.hpp"
#include "switchyard/report/escape.hpp"
#include "switchyard/report/tables.hpp"

namespace switchyard {
namespace {

std::string term(std::string_view name, const std::string& html) {
  return html.empty() ? "" : join_text("<div><dt>", name, "</dt><dd>", html, "</dd></div>\n");
}

template <class Texts>
std::string escaped_list(const Texts& items) {
  return joined(items, ", ", html_escape);
}

std::set<std::string> values_of(const StudyGroup& group, std::string StartRecord::* field) {
  std::set<std::string> values;
  for (const StudyRun& run : group.runs) {
    if (const std::string& value = run.input.log.start.*field; !value.empty()) values.insert(value);
  }
  return values;
}

std::string paragraph_list(std::string_view css_class, const std::vector<std::string>& items) {
  if (items.empty()) return "";
  std::string html = join_text("<ul class=\"", css_class, "\">");
  for (const std::string& item : items) html += "<li>" + html_escape(item) + "</li>";
  return html + "</ul>\n";
}

std::string value_cell(const StudyRun& run, std::string_view metric_name) {
  const RunMetric& metric = find_metric(metric_name);
  const std::optional<double> value = metric.value(run);
  return "<td>" + (value ? format_number(*value, metric.decimals) : "<span class=\"none\">&ndash;</span>") + "</td>";
}

double training_seconds(const StudyRun& run) {
  double seconds = 0.0;
  for (const StepRecord& step : run.input.log.steps) seconds += step.seconds;
  return seconds;
}

}  // namespace

std::string study_text(const ReportOptions& options) {
  std::string html;
  if (!options.question.empty()) html += "<p class=\"question\">" + html_escape(options.question) + "</p>\n";
  if (!options.claims.empty()) {
    html += "<h2>Claims, as the testbed evaluated them on every seed</h2>\n<ul class=\"claims\">";
    for (const ClaimInfo& claim : options.claims) {
      html += join_text("<li class=\"", html_escape(claim.verdict), "\"><b>", html_escape(claim.verdict), "</b> ",
                        html_escape(claim.text), claim.detail.empty() ? "" : "<small>" + html_escape(claim.detail) + "</small>",
                        "</li>");
    }
    html += "</ul>\n";
  }
  return html + paragraph_list("notes", options.notes);
}

std::string group_facts(const StudyGroup& group) {
  std::set<int64_t> seeds;
  std::set<int64_t> steps;
  std::set<int64_t> parameters;
  for (const StudyRun& run : group.runs) {
    seeds.insert(run.input.log.start.seed);
    steps.insert(run.input.log.start.total_steps);
    parameters.insert(run.input.log.start.parameters);
  }
  const auto numbers = [](const std::set<int64_t>& values) { return joined(values, ", ", with_thousands); };
  const std::string sequences = evaluated_numbers(group, &EvaluationRecord::sequences);
  std::string html = "<dl class=\"facts\">\n";
  html += term("Runs", join_text(group.runs.size(), " in ", group.arms.size(), group.arms.size() == 1 ? " arm" : " arms"));
  html += term("Seeds", list_seeds({seeds.begin(), seeds.end()}));
  html += term("Experts", join_text(group.num_experts, ", ", group.num_chosen, " chosen per token, ", group.num_layers,
                                    group.num_layers == 1 ? " MoE layer" : " MoE layers"));
  html += term("Parameters", numbers(parameters));
  html += term("Domains", escaped_list(group.domains));
  html += term("Steps", numbers(steps));
  if (!sequences.empty()) {
    html += term("Held-out text", join_text(sequences, " sequences, ", evaluated_numbers(group, &EvaluationRecord::tokens),
                                            " scored tokens; nulls from ",
                                            evaluated_numbers(group, &EvaluationRecord::permutations), " permutations"));
  }
  html += term("Compute type", escaped_list(values_of(group, &StartRecord::compute_type)));
  html += term("Data", group.data_hash.empty() ? "" : "<code>" + html_escape(group.data_hash.substr(0, 12)) + "</code>");
  html += term("Commit", escaped_list(values_of(group, &StartRecord::commit)));
  html += "</dl>\n";
  return html + paragraph_list("warnings", group.warnings);
}

std::string runs_table(const StudyGroup& group, const std::vector<ArmStyle>& styles) {
  std::string body;
  for (std::size_t a = 0; a < group.arms.size(); ++a) {
    for (const std::size_t index : group.arms[a].runs) {
      const StudyRun& run = group.runs[index];
      const StartRecord& start = run.input.log.start;
      body += join_text("<tr><th scope=\"row\">", marker_svg(styles[a]), html_escape(run.input.name), "</th><td class=\"text\">",
                        html_escape(group.arms[a].label), "</td><td>", start.seed, "</td><td class=\"text\">", to_string(run.state),
                        "</td><td>", run.steps_done(), " of ", start.total_steps, "</td>");
      for (const std::string_view metric : {"specialization", "max_vio_global", "max_vio_micro_batch", "loss", "speed"}) {
        body += value_cell(run, metric);
      }
      body += join_text("<td>", format_number(training_seconds(run), 0), "</td></tr>");
    }
  }
  std::string head =
      "<th scope=\"col\">Run</th><th scope=\"col\" class=\"text\">Arm</th><th scope=\"col\">Seed</th>"
      "<th scope=\"col\" class=\"text\">State</th><th scope=\"col\">Steps</th>";
  for (const std::string_view name : {"specialization", "max_vio_global", "max_vio_micro_batch", "loss", "speed"}) {
    const RunMetric& metric = find_metric(name);
    head += join_text("<th scope=\"col\">", metric.label, "<small>", metric.scope, "</small></th>");
  }
  head += "<th scope=\"col\">Training<small>seconds in steps</small></th>";
  return join_text("<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"Every run\"><table><caption>Each run by itself: its last "
                   "evaluation, mean of the MoE layers.</caption><thead><tr>",
                   head, "</tr></thead><tbody>", body, "</tbody></table></div>\n");
}

std::string notices(const StudyGroup& group) {
  std::map<std::pair<int64_t, std::string>, std::vector<std::string>> runs_of;
  for (const StudyRun& run : group.runs) {
    for (const NoticeRecord& notice : run.input.log.notices) runs_of[{notice.step, notice.text}].push_back(run.input.name);
  }
  if (runs_of.empty()) return "<p class=\"empty\">The runs logged no notices.</p>\n";
  std::string html = "<ul class=\"notices\">";
  for (const auto& [notice, runs] : runs_of) {
    html += join_text("<li>", html_escape(notice.second), "<small>step ", notice.first, "; ");
    if (runs.size() == group.runs.size() && runs.size() > 1) {
      html += join_text("all ", runs.size(), " runs");
    } else {
      html += escaped_list(std::set<std::string>(runs.begin(), runs.end()));
    }
    html += "</small></li>";
  }
  return html + "</ul>\n";
}

std::string run_details(const StudyGroup& group) {
  std::string html;
  for (const StudyArm& arm : group.arms) {
    for (const std::size_t index : arm.runs) {
      const RunInput& run = group.runs[index].input;
      const StartRecord& start = run.log.start;
      html += join_text("<details class=\"run\"><summary>", html_escape(run.name), "</summary>\n<dl class=\"facts\">\n");
      html += term("Seed", std::to_string(start.seed));
      html += term("Started", html_escape(start.time_utc));
      html += term("Commit", html_escape(start.commit));
      html += term("Versions", join_text("switchyard ", html_escape(start.version), ", libtorch ", html_escape(start.torch_version)));
      html += term("Processor", html_escape(start.processor));
      html += term("Compute type", html_escape(start.compute_type));
      html += term("Data set", html_escape(start.data_hash));
      html += term("Command", "<code>" + html_escape(start.command) + "</code>");
      html += join_text("</dl>\n<pre tabindex=\"0\"><code>", html_escape(run.config_toml), "</code></pre></details>\n");
    }
  }
  return html;
}

}  // namespace switchyard
