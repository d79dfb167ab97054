#pragma once
// Claims of a testbed held against what its runs measured.

#include <optional>
#include <string>
#include <vector>

#include "switchyard/measure/run_log.hpp"

namespace switchyard {

struct ClaimConfig;

/// What one run measured at its end.
struct RunResultRow {
  std::string name;
  std::string arm;
  int64_t seed = 0;
  std::optional<EvaluationRecord> evaluation;  // none: the run failed or was interrupted
};

/// Metrics that a claim may name, all of the held-out evaluation. max_vio, utilization, dead_experts and entropy are of the
/// counts over the whole held-out set (this max_vio is `max_vio_global` in the report); max_vio_micro_batch is the mean over
/// held-out micro-batches, while that of a step record and of `switchyard list metrics` is of training micro-batches.
[[nodiscard]] std::vector<std::string> claim_metric_names();

/// A metric of the last held-out evaluation, for the model (means over layers). @throws UsageError for an unknown name
[[nodiscard]] double claim_metric(const EvaluationRecord& evaluation, const std::string& name);

enum class Verdict {
  Holds,
  Fails,      // on at least one seed
  Undecided,  // a run that it needs has no result, and no seed fails
};
[[nodiscard]] std::string to_string(Verdict verdict);  // "holds", "fails", "undecided"

struct ClaimSeed {
  int64_t seed = 0;
  std::optional<double> value;  // the metric or the difference; none without results
  Verdict verdict = Verdict::Undecided;
};

struct ClaimResult {
  std::string text;
  std::vector<ClaimSeed> seeds;  // all that both arms were to run
  Verdict verdict = Verdict::Undecided;
  std::string detail;  // "difference .381 (seed 0), .402 (seed 1); at least .1"
};

/// Deterministic. A value that is not finite fails.
/// @param rows  one for each planned run, also those without a result
[[nodiscard]] ClaimResult check_claim(const ClaimConfig& claim, const std::vector<RunResultRow>& rows);

}  // namespace switchyard
