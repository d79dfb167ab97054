#pragma once
// The balancing scope: over which tokens expert counts are taken. A value, not a class hierarchy: it changes which counts
// are added up, never the formula. The order of sequences in a step is (micro-batch, rank, row, document).

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

enum class ScopeKind {
  Sequence,        // each sequence (each packed document) by itself
  Sequences,       // n consecutive sequences of the step; a short last group weighs by its tokens
  MicroBatch,      // the tokens of one micro-batch on one rank
  Ranks,           // the same micro-batch on every rank
  Prefix,          // all ranks, micro-batches 1..m of this step (arXiv 2501.11873, Algorithm 1)
  OptimizerBatch,  // all ranks and all micro-batches of the step, exactly
  PreviousStep,    // the whole previous step
  Ema,             // exponential mean of the expert fractions over steps
};

struct Scope {
  ScopeKind kind = ScopeKind::OptimizerBatch;
  int64_t num_sequences = 0;  // Sequences only, >= 1
  double decay = 0.0;         // Ema only, in (0, 1)

  bool operator==(const Scope&) const = default;
};

/// The spelling used in config, command line, log and report: "micro_batch", "sequences(8)", "ema(0.9)".
[[nodiscard]] std::string to_string(const Scope& scope);

/// Inverse of to_string. Throws ConfigError that lists the valid scopes and the nearest one.
void parse(std::string_view text, Scope& scope);

struct ScopeInfo {
  ScopeKind kind;
  std::string_view spelling;     // with its parameter, "sequences(n)"
  std::string_view description;  // one line
};

/// All scopes, in the order of the enum.
[[nodiscard]] const std::vector<ScopeInfo>& scope_table();

}  // namespace switchyard
