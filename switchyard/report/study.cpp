#include "switchyard/report/study.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

auto group_key(const StartRecord& start) {
  return std::tuple(start.domains, start.num_layers, start.num_experts, start.num_chosen, start.data_hash);
}

auto setting_key(const StartRecord& start) {
  return std::tuple(start.arm, start.scope, start.method, start.coefficient, start.router);
}

RunState state_of(const RunLog& log) {
  if (!log.end) return RunState::Open;
  return log.end->reason == "done" ? RunState::Done : RunState::Interrupted;
}

template <typename Row>
bool is_table(const std::vector<Row>& rows, std::size_t num_rows, std::size_t num_columns) {
  return rows.size() == num_rows &&
         std::all_of(rows.begin(), rows.end(), [&](const Row& row) { return row.size() == num_columns; });
}

void check_evaluation(const RunInput& run, const EvaluationRecord& evaluation) {
  const StartRecord& start = run.log.start;
  const std::size_t num_domains = start.domains.size();
  const auto num_experts = static_cast<std::size_t>(start.num_experts);
  const std::string where = join_text("run '", run.name, "', evaluation after step ", evaluation.step, ": ");
  SWITCHYARD_CHECK(evaluation.domains.size() == num_domains, DataError, where, evaluation.domains.size(),
                   " domains have a loss, but the run starts with ", num_domains, "; the log is damaged or edited");
  SWITCHYARD_CHECK(static_cast<int64_t>(evaluation.layers.size()) == start.num_layers, DataError, where,
                   evaluation.layers.size(), " layers were measured, but the model has ", start.num_layers, " MoE layers");
  for (const LayerEvaluation& layer : evaluation.layers) {
    SWITCHYARD_CHECK(is_table(layer.counts_NE, num_domains, num_experts), DataError, where, "counts_NE of layer ", layer.layer,
                     " is not ", num_domains, " domains x ", num_experts, " experts");
    SWITCHYARD_CHECK(layer.jensen_shannon_NN.empty() || is_table(layer.jensen_shannon_NN, num_domains, num_domains), DataError,
                     where, "jensen_shannon_NN of layer ", layer.layer, " is not ", num_domains, " x ", num_domains);
  }
}

std::string describe_group(const StartRecord& start) {
  return join_text(start.domains.size(), start.domains.size() == 1 ? " domain, " : " domains, ", start.num_experts, " experts of which ",
                   start.num_chosen, " are chosen, ", start.num_layers, start.num_layers == 1 ? " MoE layer" : " MoE layers");
}

/// Groups of one shape differ in domains, or in data of the same domains.
void tell_groups_apart(std::vector<StudyGroup>& groups) {
  std::map<std::string, std::map<std::string, int>> groups_of;  // by label, then domains
  for (const StudyGroup& group : groups) ++groups_of[group.label][comma_list(group.domains)];
  for (StudyGroup& group : groups) {
    const std::map<std::string, int>& groups_of_domains = groups_of.at(group.label);
    const std::string domains = comma_list(group.domains);
    if (groups_of_domains.size() > 1) group.label += ": " + domains;
    if (groups_of_domains.at(domains) > 1) group.label += ", data " + group.data_hash.substr(0, 12);
  }
}

const ArmInfo* find_info(const ReportOptions& options, const std::string& arm) {
  const auto found =
      std::find_if(options.arms.begin(), options.arms.end(), [&](const ArmInfo& info) { return info.name == arm; });
  return found == options.arms.end() ? nullptr : &*found;
}

/// Runs of one arm: the same setting, every seed once. A repeated seed means that the runs are not one arm.
struct ArmDraft {
  StudyArm arm;
  std::string name;
  std::size_t rank = 0;  // place in the options
};

/// Runs that share an arm's name, and what tells their settings apart.
struct NamedRuns {
  std::set<decltype(setting_key(StartRecord{}))> starts;
  std::vector<const Settings*> settings;
  std::vector<std::string> keys;  // at which their configurations differ, beside what `starts` holds

  [[nodiscard]] std::string label(const StudyRun& run) const {
    const StartRecord& start = run.input.log.start;
    std::vector<std::string> parts;
    const bool terms = std::ranges::any_of(keys, [](const std::string& key) { return key.starts_with("balance.terms["); });
    if (starts.size() > 1) parts.push_back(join_text(start.router, ", ", start.scope, ", ", start.method, " ", start.coefficient));
    if (terms) parts.push_back(balancing_text(start, run.settings));
    for (const std::string& key : keys) {
      if (!key.starts_with("balance.terms[")) parts.push_back(join_text(key, " = ", value_of(run.settings, key)));
    }
    return parts.empty() ? start.arm : join_text(start.arm, " (", comma_list(parts), ")");
  }
};

std::map<std::string, NamedRuns> runs_by_name(const std::vector<StudyRun>& runs) {
  const std::set<std::string> in_starts = {"model.router.name", "balance.scope", "balance.method", "balance.coefficient"};
  std::map<std::string, NamedRuns> by_name;
  for (const StudyRun& run : runs) {
    NamedRuns& named = by_name[run.input.log.start.arm];
    named.starts.insert(setting_key(run.input.log.start));
    named.settings.push_back(&run.settings);
  }
  for (auto& [name, named] : by_name) {
    named.keys = differing_keys(named.settings);
    std::erase_if(named.keys, [&](const std::string& key) { return in_starts.contains(key); });
  }
  return by_name;
}

ArmDraft draft_arm(const StartRecord& start, const std::string& label, const ReportOptions& options) {
  const ArmInfo* info = find_info(options, start.arm);
  ArmDraft draft;
  draft.name = start.arm;
  draft.arm.label = label;
  draft.arm.kind = info != nullptr && info->kind ? *info->kind : infer_arm_kind(start.router);
  draft.arm.description = info != nullptr ? info->description : "";
  draft.rank = info != nullptr ? static_cast<std::size_t>(info - options.arms.data()) : options.arms.size();
  return draft;
}

std::vector<ArmDraft> draft_arms(const std::vector<StudyRun>& runs, const ReportOptions& options) {
  const std::map<std::string, NamedRuns> by_name = runs_by_name(runs);
  std::vector<std::string> labels;
  std::map<std::string, std::map<int64_t, int>> seeds_of_label;
  for (const StudyRun& run : runs) {
    labels.push_back(by_name.at(run.input.log.start.arm).label(run));
    ++seeds_of_label[labels.back()][run.input.log.start.seed];
  }
  std::vector<ArmDraft> drafts;
  std::map<std::string, std::size_t> draft_of_label;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    std::string label = labels[i];
    if (std::ranges::any_of(seeds_of_label[label], [](const auto& seed) { return seed.second > 1; })) {
      label = join_text(label, " [", runs[i].input.name, "]");
    }
    const auto [place, is_new] = draft_of_label.try_emplace(label, drafts.size());
    if (is_new) drafts.push_back(draft_arm(runs[i].input.log.start, label, options));
    drafts[place->second].arm.runs.push_back(i);
  }
  std::stable_sort(drafts.begin(), drafts.end(), [](const ArmDraft& a, const ArmDraft& b) {
    return std::pair(a.arm.kind, a.rank) < std::pair(b.arm.kind, b.rank);
  });
  return drafts;
}

void choose_counted(StudyArm& arm, const std::vector<StudyRun>& runs) {
  const auto take = [&](RunState state) {
    for (const std::size_t run : arm.runs) {
      if (runs[run].evaluation() != nullptr && (runs[run].state == RunState::Done) == (state == RunState::Done)) {
        arm.counted.push_back(run);
      }
    }
  };
  take(RunState::Done);
  if (!arm.counted.empty()) return;
  take(RunState::Open);
  arm.is_partial = !arm.counted.empty();
}

/// @param value_of  nothing for runs that do not have it
template <typename Value>
void warn_if_different(StudyGroup& group, const std::string& what, std::optional<Value> (*value_of)(const StudyRun&)) {
  std::set<Value> values;
  for (const StudyRun& run : group.runs) {
    if (const std::optional<Value> value = value_of(run)) values.insert(*value);
  }
  if (values.size() < 2) return;
  const std::string list = joined(values, ", ", [](const Value& value) { return join_text(value); });
  group.warnings.push_back(join_text("The runs differ in ", what, ": ", list, "."));
}

/// What router and balancing do not explain. Data and model, the router aside, decide data order and initial weights of a seed.
void compare_settings(StudyGroup& group, const std::vector<const Settings*>& settings) {
  for (const std::string& key : differing_keys(settings)) {
    const bool begins = decides_beginning(key);
    if (!begins && !key.starts_with("optimizer.")) continue;
    std::set<std::string> values;
    for (const Settings* run : settings) values.insert(value_of(*run, key));
    const std::vector<std::string> list(values.begin(), values.end());
    group.warnings.push_back(join_text("The runs differ in ", key, ": ", comma_list(list), ".",
                                       begins ? " So one seed is not one beginning for all of them." : ""));
    if (begins) group.same_beginning = false;
  }
}

/// A beginning is the same only where every run says with what it began, and one program drew it.
void doubt_beginning(StudyGroup& group, const std::vector<const Settings*>& settings) {
  const auto doubt = [&group](const std::string& why) {
    group.warnings.push_back(why + ", so one seed may not be one beginning for all of them.");
    group.same_beginning = false;
  };
  std::set<std::string> found;
  for (const StudyRun& run : group.runs) found.insert(run.input.log.start.version);
  const std::vector<std::string> versions(found.begin(), found.end());
  if (versions.size() > 1) doubt("The runs differ in version: " + comma_list(versions));
  std::vector<std::string> keys = beginning_keys_of_some(settings);
  constexpr std::size_t kShown = 4;
  const std::size_t others = keys.size() - std::min(keys.size(), kShown);
  keys.resize(keys.size() - others);
  const std::string more = join_text(" and ", others, others == 1 ? " other key" : " other keys", " of data and model");
  if (!keys.empty()) doubt(join_text("Only some of the configurations have ", comma_list(keys), others == 0 ? "" : more));
  for (const char* table : {"data", "model"}) {
    const auto tells = [prefix = std::string(table) + "."](const auto& entry) {
      return entry.first.starts_with(prefix) && decides_beginning(entry.first);
    };
    if (std::ranges::none_of(settings, [&tells](const Settings* run) { return std::ranges::any_of(*run, tells); })) {
      doubt(join_text("No configuration has keys of ", table));
    }
  }
}

void compare_beginnings(StudyGroup& group) {
  if (group.runs.size() < 2) return;
  std::vector<const Settings*> settings;
  for (const StudyRun& run : group.runs) settings.push_back(&run.settings);
  compare_settings(group, settings);
  doubt_beginning(group, settings);
}

/// Steps rise from the first by one, or in the log of another program by whatever it logs at.
void warn_of_gap(StudyGroup& group, const StudyRun& run) {
  const std::vector<StepRecord>& steps = run.input.log.steps;
  int64_t pace = 1;
  for (std::size_t i = 1; i < steps.size(); ++i) {
    const int64_t rise = steps[i].step - steps[i - 1].step;
    pace = i == 1 ? rise : std::min(pace, rise);
  }
  int64_t before = 0;
  for (const StepRecord& record : steps) {
    const int64_t expected = before + std::max<int64_t>(pace, 1);
    before = record.step;
    if (record.step == expected) continue;
    group.warnings.push_back(join_text("The log of run ", run.input.name, " has step ", record.step, " where step ", expected,
                                       " is expected: steps are missing or there twice, so its curves and times are not whole."));
    return;
  }
}

void add_warnings(StudyGroup& group) {
  for (const StudyRun& run : group.runs) {
    warn_of_gap(group, run);
    if (run.state == RunState::Done) continue;
    group.warnings.push_back(join_text(
        "Run ", run.input.name, " is not finished (", to_string(run.state), " after step ", run.steps_done(), " of ",
        run.input.log.start.total_steps, "). Summaries leave it out unless its arm has nothing else, and then say so."));
  }
  warn_if_different<int64_t>(group, "planned steps",
                             [](const StudyRun& run) { return std::optional(run.input.log.start.total_steps); });
  warn_if_different<int64_t>(group, "held-out sequences", [](const StudyRun& run) {
    return run.evaluation() == nullptr ? std::nullopt : std::optional(run.evaluation()->sequences);
  });
  warn_if_different<int64_t>(group, "scored held-out tokens", [](const StudyRun& run) {
    return run.evaluation() == nullptr ? std::nullopt : std::optional(run.evaluation()->tokens);
  });
  warn_if_different<int64_t>(group, "label permutations behind the null", [](const StudyRun& run) {
    return run.evaluation() == nullptr ? std::nullopt : std::optional(run.evaluation()->permutations);
  });
  warn_if_different<int64_t>(group, "number of parameters",
                             [](const StudyRun& run) { return std::optional(run.input.log.start.parameters); });
  warn_if_different<std::string>(group, "compute type",
                                 [](const StudyRun& run) { return std::optional(run.input.log.start.compute_type); });
  warn_if_different<std::string>(group, "commit", [](const StudyRun& run) {
    const std::string& commit = run.input.log.start.commit;  // other programs may have none
    return commit.empty() ? std::nullopt : std::optional(commit);
  });
}

std::size_t choose_baseline(const StudyGroup& group, const std::string& name) {
  for (std::size_t i = 0; i < group.arms.size(); ++i) {
    const StudyArm& arm = group.arms[i];
    if (!name.empty() && group.runs[arm.runs.front()].input.log.start.arm == name) return i;
  }
  return 0;
}

void finish_group(StudyGroup& group, const ReportOptions& options) {
  const StartRecord& start = group.runs.front().input.log.start;
  group.label = describe_group(start);
  group.domains = start.domains;
  group.num_layers = start.num_layers;
  group.num_experts = start.num_experts;
  group.num_chosen = start.num_chosen;
  group.data_hash = start.data_hash;
  for (const ArmDraft& draft : draft_arms(group.runs, options)) group.arms.push_back(draft.arm);
  for (std::size_t i = 0; i < group.arms.size(); ++i) {
    StudyArm& arm = group.arms[i];
    std::stable_sort(arm.runs.begin(), arm.runs.end(), [&](std::size_t a, std::size_t b) {
      return group.runs[a].input.log.start.seed < group.runs[b].input.log.start.seed;
    });
    for (const std::size_t run : arm.runs) group.runs[run].arm = i;
    choose_counted(arm, group.runs);
  }
  group.baseline = choose_baseline(group, options.baseline);
  add_warnings(group);
  compare_beginnings(group);
}

}  // namespace

std::string to_string(RunState state) {
  switch (state) {
    case RunState::Done: return "done";
    case RunState::Interrupted: return "interrupted";
    case RunState::Open: break;
  }
  return "no end in the log";
}

int64_t StudyRun::steps_done() const {
  if (input.log.end) return input.log.end->step;
  return input.log.steps.empty() ? input.log.start.step : input.log.steps.back().step;
}

const EvaluationRecord* StudyRun::evaluation() const {
  return input.log.evaluations.empty() ? nullptr : &input.log.evaluations.back();
}

std::vector<StudyGroup> make_groups(const std::vector<RunInput>& runs, const ReportOptions& options) {
  SWITCHYARD_CHECK(!runs.empty(), UsageError, "a report needs at least one run, none was given");
  std::set<std::string> names;
  std::set<std::string> arms;
  std::vector<StudyGroup> groups;
  std::map<decltype(group_key(StartRecord{})), std::size_t> group_of;
  for (const RunInput& run : runs) {
    SWITCHYARD_CHECK(names.insert(run.name).second, UsageError, "two runs are named '", run.name,
                     "'; a report needs distinct names, so give each run folder once");
    for (const EvaluationRecord& evaluation : run.log.evaluations) check_evaluation(run, evaluation);
    arms.insert(run.log.start.arm);
    const auto [place, is_new] = group_of.try_emplace(group_key(run.log.start), groups.size());
    if (is_new) groups.emplace_back();
    groups[place->second].runs.push_back(
        {.input = run, .settings = read_settings(run.config_toml), .state = state_of(run.log)});
  }
  const std::vector<std::string> known(arms.begin(), arms.end());
  SWITCHYARD_CHECK(options.baseline.empty() || arms.contains(options.baseline), UsageError,
                   unknown_name("baseline arm", options.baseline, known));
  for (StudyGroup& group : groups) finish_group(group, options);
  tell_groups_apart(groups);
  return groups;
}

}  // namespace switchyard
