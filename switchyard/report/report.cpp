#include "switchyard/report/report.hpp"

#include <array>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/report/assets.hpp"
#include "switchyard/report/chart_data.hpp"
#include "switchyard/report/escape.hpp"
#include "switchyard/report/run_sections.hpp"
#include "switchyard/report/study.hpp"
#include "switchyard/report/tables.hpp"

namespace switchyard {
namespace {

struct Section {
  std::string_view id;
  std::string_view title;
};

// Order of group.html.
constexpr std::array<Section, 10> kSections = {{{"run", "What was run"},
                                                {"summary", "Summary"},
                                                {"pairs", "Paired differences"},
                                                {"balance", "Specialisation, balance, loss"},
                                                {"experts", "Which expert serves which domain"},
                                                {"distance", "How far domains are apart"},
                                                {"domains", "Loss per domain"},
                                                {"curves", "Over the steps"},
                                                {"load", "Load of the experts"},
                                                {"runs", "Every run"}}};

std::string navigation(const std::vector<StudyGroup>& groups) {
  std::string html;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups.size() > 1) html += join_text("<li class=\"group\">", html_escape(groups[g].label), "</li>");
    for (const Section& section : kSections) {
      html += join_text("<li><a href=\"#g", g, "-", section.id, "\">", section.title, "</a></li>");
    }
  }
  return html + "<li><a href=\"#definitions\">What the numbers mean</a></li>";
}

std::string group_html(const StudyGroup& group, std::size_t index, std::string_view group_template) {
  const std::vector<ArmStyle> styles = arm_styles(group.arms);
  return fill_template(group_template, {{"group", std::to_string(index)},
                                        {"label", html_escape(group.label)},
                                        {"facts", group_facts(group)},
                                        {"summary_table", summary_table(group, styles)},
                                        {"further_tables", further_tables(group, styles)},
                                        {"paired_table", paired_table(group, styles)},
                                        {"domain_loss_table", domain_loss_table(group, styles)},
                                        {"arm_key", arm_key(group, styles)},
                                        {"runs_table", runs_table(group, styles)},
                                        {"notices", notices(group)},
                                        {"run_details", run_details(group)}});
}

}  // namespace

ArmKind infer_arm_kind(const std::string& router) {
  struct Known {
    std::string_view router;
    ArmKind kind;
  };
  static constexpr std::array<Known, 4> kKnown = {{{"prescribed", ArmKind::Ceiling},
                                                   {"prescribed_shuffled", ArmKind::Floor},
                                                   {"frozen_random", ArmKind::Floor},
                                                   {"random", ArmKind::Floor}}};
  for (const Known& known : kKnown) {
    if (known.router == router) return known.kind;
  }
  return ArmKind::Trained;
}

std::string build_report(const std::vector<RunInput>& runs, const ReportOptions& options) {
  const std::vector<StudyGroup> groups = make_groups(runs, options);
  const ReportAssets assets = report_assets();
  std::string group_parts;
  for (std::size_t g = 0; g < groups.size(); ++g) group_parts += group_html(groups[g], g, assets.group);
  std::string intro = study_text(options);
  if (groups.size() > 1) {
    intro += join_text("<p class=\"empty\">The runs fall into ", groups.size(),
                       " groups that differ in domains, experts, layers or data. Numbers of different groups do not compare.</p>\n");
  }
  return fill_template(assets.page, {{"title", html_escape(options.title)},
                                     {"style", std::string(assets.style)},
                                     {"plotly_hash", script_hash(assets.plotly)},
                                     {"script_hash", script_hash(assets.script)},
                                     {"intro", intro},
                                     {"navigation", navigation(groups)},
                                     {"groups", group_parts},
                                     {"definitions", std::string(assets.definitions)},
                                     {"data", json_for_script(chart_data(groups, options.curve_points))},
                                     {"plotly", std::string(assets.plotly)},
                                     {"script", std::string(assets.script)}});
}

void write_report(const std::vector<std::filesystem::path>& folders, const std::filesystem::path& out_path,
                  const ReportOptions& options) {
  const ReportSource source = read_report_source(folders, options);
  write_file_atomically(out_path, build_report(source.runs, source.options));
}

}  // namespace switchyard
