#pragma once
// A testbed: arms x seeds of one training run, compared. Read from TOML, expanded into whole RunConfigs.

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "switchyard/core/config.hpp"
#include "switchyard/measure/arm_kind.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

/// One way of training. It differs from [run] by its overrides alone.
struct ArmConfig {
  std::string name;         // names the folders of its runs: letters, digits, '_', '-', '.'
  ArmKind kind = ArmKind::Trained;
  std::string description;  // one line for the report
  std::vector<std::string> overrides;  // "balance.scope=micro_batch"
  std::vector<int64_t> seeds;          // empty: those of the testbed

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("name", name, "name of the arm and of its folders");
    visit("kind", kind, "trained, floor or ceiling");
    visit("description", description, "one line for the report");
    visit("overrides", overrides, "keys of [run] that differ, as \"balance.scope=micro_batch\"");
    visit("seeds", seeds, "seeds of this arm; empty: those of the testbed");
  }

  bool operator==(const ArmConfig&) const = default;
};

/// A statement that the results are held against: metric(arm) - metric(against) in [at_least, at_most], on every seed that
/// both arms have. Without `against` it is about metric(arm) itself.
struct ClaimConfig {
  std::string text;    // in words; empty: made from the fields
  std::string metric = "specialization";  // one of claim_metric_names()
  std::string arm;
  std::string against;
  double at_least = -std::numeric_limits<double>::infinity();
  double at_most = std::numeric_limits<double>::infinity();

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("text", text, "the claim in words");
    visit("metric", metric, "metric of the last held-out evaluation");
    visit("arm", arm, "arm the claim is about");
    visit("against", against, "arm it is compared with; empty: none");
    visit("at_least", at_least, "smallest value, or difference, for which the claim holds");
    visit("at_most", at_most, "largest value, or difference, for which the claim holds");
  }

  bool operator==(const ClaimConfig&) const = default;
};

struct TestbedConfig {
  std::string name = "testbed";
  std::string question;             // what the comparison is to answer; shown in the report
  std::string base;                 // file with a run configuration, relative to this file; [run] is laid over it
  std::string baseline;             // arm that the report takes paired differences against; empty: the first trained one
  std::vector<int64_t> seeds = {0};
  RunConfig run;                    // what all arms share
  std::vector<ArmConfig> arms;
  std::vector<ClaimConfig> claims;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("name", name, "name of the testbed; default folder runs/<name>");
    visit("question", question, "what the comparison is to answer");
    visit("base", base, "run configuration that [run] is laid over, relative to this file");
    visit("baseline", baseline, "arm that the report compares the others with; empty: the first trained one");
    visit("seeds", seeds, "each arm runs once per seed; equal seeds have equal data order and initial weights");
    visit("run", run, "what all arms share: the keys of a run configuration");
    visit("arms", arms, "the ways of training that are compared");
    visit("claims", claims, "statements that the results are held against");
  }
  void validate(const std::string& where) const;

  bool operator==(const TestbedConfig&) const = default;
};

/// Reads the file, its base, and overrides "run.steps=20".
/// @throws ConfigError
[[nodiscard]] TestbedConfig read_testbed_config(const std::filesystem::path& path,
                                                const std::vector<std::string>& overrides = {});

/// One run of the testbed.
struct PlannedRun {
  std::string name;  // "optimizer_batch-seed0", also its folder
  std::string arm;
  int64_t seed = 0;
  RunConfig config;
};

/// Seed by seed, within a seed in the order of the arms, so that an interrupted testbed has whole comparisons.
/// @throws ConfigError naming the arm whose overrides are wrong, or a claim whose arms do not measure the same (alike.hpp)
[[nodiscard]] std::vector<PlannedRun> expand(const TestbedConfig& config);

}  // namespace switchyard
