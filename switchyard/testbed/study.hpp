#pragma once
// What a testbed found: one row an arm, claims, and what a reader must know about the whole.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/measure/summary.hpp"
#include "switchyard/testbed/claims.hpp"
#include "switchyard/testbed/config.hpp"

namespace switchyard {

/// An arm over its seeds, from the last held-out evaluation of each finished run. Means over MoE layers.
struct ArmRow {
  std::string arm;
  ArmKind kind = ArmKind::Trained;
  int64_t num_planned = 0;
  std::vector<int64_t> seeds;       // of the finished runs
  Summary specialization;
  Summary max_vio;                  // global scope: counts of the whole held-out set
  Summary max_vio_micro_batch;      // mean over held-out micro-batches
  Summary loss;                     // held out, nats per token; not a ranking
};

struct Study {
  std::vector<ArmRow> arms;         // in the order of the configuration
  std::vector<ClaimResult> claims;
  std::vector<std::string> notes;
  std::vector<RunResultRow> results;  // what all of it rests on, one for each planned run
};

/// Reads the finished runs below `folder`.
[[nodiscard]] std::vector<RunResultRow> read_results(const std::filesystem::path& folder, const std::vector<PlannedRun>& runs);

[[nodiscard]] Study make_study(const TestbedConfig& config, const std::vector<PlannedRun>& runs,
                               const std::vector<RunResultRow>& results);

/// What the configuration makes true of all its results: lambda above the paper's, micro-batches of one domain, few
/// held-out sequences, loss without ranking.
[[nodiscard]] std::vector<std::string> study_notes(const std::vector<PlannedRun>& runs);

/// testbed.json: what the report reads (report/study_file.hpp) and more for scripts. docs/testbed.md has every key.
[[nodiscard]] std::string study_json(const TestbedConfig& config, const Study& study);

}  // namespace switchyard
