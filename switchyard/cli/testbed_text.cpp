#include "switchyard/cli/testbed_text.hpp"

#include <algorithm>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/testbed/number_text.hpp"

namespace switchyard {
namespace {

std::string summary_cell(const Summary& summary, int digits) {
  if (summary.count == 0) return "-";
  std::string text = number_text(summary.mean, digits);
  if (!summary.interval) return text;
  return join_text(text, " +- ", number_text((summary.interval->upper - summary.interval->lower) / 2.0, digits));
}

std::string seeds_cell(const ArmRow& row) {
  const auto finished = static_cast<int64_t>(row.seeds.size());
  return finished == row.num_planned ? std::to_string(finished) : join_text(finished, " of ", row.num_planned);
}

std::string kind_cell(ArmKind kind) { return kind == ArmKind::Trained ? "" : to_string(kind); }

std::string arms_table(const Study& study, Screen screen) {
  std::vector<std::vector<std::string>> rows = {
      {"arm", "", "seeds", "specialisation S", "MaxVio, global", "MaxVio, micro-batch", "held-out loss"}};
  bool intervals = false;
  for (const ArmRow& row : study.arms) {
    intervals = intervals || row.specialization.interval.has_value();
    rows.push_back({row.arm, kind_cell(row.kind), seeds_cell(row), summary_cell(row.specialization, 3),
                    summary_cell(row.max_vio, 2), summary_cell(row.max_vio_micro_batch, 2), summary_cell(row.loss, 3)});
  }
  const std::string table = table_text(
      rows, {Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Right, Align::Right});
  const size_t header_end = table.find('\n');
  std::string text = styled(screen, Style::Bold, table.substr(0, header_end)) + table.substr(header_end);
  text += "Held-out text, means over the MoE layers. S: 0 is chance, 1 is attainable. Loss in nats per token, not ranked.\n";
  if (intervals) text += "+-: half of the 95 % t-interval over seeds; rows without it have one result.\n";
  return text;
}

std::string claim_lines(const ClaimResult& claim, Screen screen) {
  const Style style = claim.verdict == Verdict::Holds   ? Style::Green
                      : claim.verdict == Verdict::Fails ? Style::Red
                                                        : Style::Yellow;
  std::string verdict = to_string(claim.verdict);
  const std::string padding(verdict.size() < 9 ? 9 - verdict.size() : 0, ' ');
  return join_text("  ", styled(screen, style, verdict), padding, "  ", claim.text, "\n             ", claim.detail, "\n");
}

std::string run_line(const RunProgress& run, size_t name_width) {
  const double per_step = run.seconds / static_cast<double>(run.step - run.first_step + 1);
  std::string text = join_text("  ", run.name, std::string(name_width - run.name.size(), ' '), " ",
                               bar_text(run.step, run.total_steps, kBarWidth), " ", run.step, "/", run.total_steps);
  if (run.first_step > 0 && run.step < run.total_steps) {
    text += join_text("  loss ", number_text(run.loss, 3), "  ",
                      grouped_digits(static_cast<int64_t>(run.tokens_per_second)), " tokens/s  about ",
                      duration_text(per_step * static_cast<double>(run.total_steps - run.step)), " left");
  } else if (run.step == run.total_steps) {
    text += "  evaluating";
  }
  return text;
}

bool is_finished(const RunProgress& run) { return run.status == RunStatus::Done || run.status == RunStatus::Skipped; }

}  // namespace

std::string testbed_header_text(const TestbedConfig& config, const RunnerOptions& options) {
  const std::vector<PlannedRun> runs = expand(config);
  const ProcessPlan plan = plan_processes(options.cores, static_cast<int64_t>(runs.size()), options.jobs);
  std::string text = join_text("testbed ", config.name, ": ", config.arms.size(), config.arms.size() == 1 ? " arm, " : " arms, ",
                               runs.size(), runs.size() == 1 ? " run, " : " runs, ", plan.jobs, " at a time with ", plan.threads,
                               plan.threads == 1 ? " thread" : " threads", " each, in ", options.folder.string(), "\n");
  if (!config.question.empty()) text += "question: " + config.question + "\n";
  return text;
}

std::string run_event_text(const RunProgress& run, Screen screen) {
  switch (run.status) {
    case RunStatus::Done:
      return join_text(styled(screen, Style::Green, "done"), "    ", run.name, " in ", duration_text(run.seconds));
    case RunStatus::Failed:
      return join_text(styled(screen, Style::Red, "failed"), "  ", run.name, ": ", run.error.substr(0, run.error.find('\n')));
    case RunStatus::Interrupted:
      return join_text(styled(screen, Style::Yellow, "stopped"), " ", run.name, " at step ", run.step);
    case RunStatus::Running: return screen == Screen::Plain ? "start   " + run.name : "";
    case RunStatus::Waiting:
    case RunStatus::Skipped: break;
  }
  return "";
}

std::string progress_text(const std::vector<RunProgress>& runs, Screen screen) {
  const auto finished = std::count_if(runs.begin(), runs.end(), is_finished);
  const std::string all = join_text(finished, " of ", runs.size(), " runs done");
  std::vector<const RunProgress*> running;
  size_t name_width = 0;
  for (const RunProgress& run : runs) {
    if (run.status != RunStatus::Running) continue;
    running.push_back(&run);
    name_width = std::max(name_width, run.name.size());
  }
  if (screen == Screen::Plain) {
    const auto plain = [](const RunProgress* run) { return join_text(run->name, " ", run->step, "/", run->total_steps); };
    return join_text(all, "; ", joined(running, ", ", plain));
  }
  std::string text;
  for (const RunProgress* run : running) text += run_line(*run, name_width) + "\n";
  return text + "  " + all;
}

std::string study_text(const Study& study, Screen screen) {
  std::string text = arms_table(study, screen);
  if (!study.claims.empty()) {
    text += "\n" + styled(screen, Style::Bold, "Claims, on every seed that both arms have") + "\n";
    for (const ClaimResult& claim : study.claims) text += claim_lines(claim, screen);
  }
  text += "\n" + styled(screen, Style::Bold, "To be read with it") + "\n";
  for (const std::string& note : study.notes) text += "  " + note + "\n";
  return text;
}

}  // namespace switchyard
