#pragma once
// Runs sorted into groups that may be compared, and within a group into arms.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/measure/run_log.hpp"
#include "switchyard/report/report.hpp"
#include "switchyard/report/settings.hpp"

namespace switchyard {

enum class RunState {
  Done,
  Interrupted,  // ended on a signal before its last step
  Open,         // no end in the log: still running, or killed
};

[[nodiscard]] std::string to_string(RunState state);

struct StudyRun {
  RunInput input;
  Settings settings;    // of its configuration
  std::size_t arm = 0;  // index into StudyGroup::arms
  RunState state = RunState::Open;

  [[nodiscard]] int64_t steps_done() const;
  /// The last one; null without any. Of a run that is not done it describes a model that is not ready.
  [[nodiscard]] const EvaluationRecord* evaluation() const;
};

struct StudyArm {
  std::string label;  // the arm's name, made distinct where two settings share a name
  ArmKind kind = ArmKind::Trained;
  std::string description;
  std::vector<std::size_t> runs;  // indices into StudyGroup::runs, by seed

  /// What the summaries are taken over: finished runs with an evaluation; without any of these, unfinished ones that have
  /// one. See is_partial.
  std::vector<std::size_t> counted;
  bool is_partial = false;  // counted runs are unfinished: never to be read as a result
};

/// Runs with the same domains, experts, layers and data set.
struct StudyGroup {
  std::string label;
  std::vector<std::string> domains;
  int64_t num_layers = 0;
  int64_t num_experts = 0;
  int64_t num_chosen = 0;
  std::string data_hash;
  std::vector<StudyArm> arms;  // trained ones, floors, ceilings; within these as listed in the options, then as met
  std::vector<StudyRun> runs;
  std::size_t baseline = 0;    // arm that differences are taken against
  bool same_beginning = true;  // one seed is known to mean the same data order and, where weights are common, initial ones
  std::vector<std::string> warnings;  // why numbers of this group may not compare
};

/// Errors as for build_report.
[[nodiscard]] std::vector<StudyGroup> make_groups(const std::vector<RunInput>& runs, const ReportOptions& options);

}  // namespace switchyard
