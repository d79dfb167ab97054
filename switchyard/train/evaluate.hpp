#pragma once
// Held-out evaluation: the same text for every arm, no gradient, and no trace in weights, balancing state or random streams.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/data/batch.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/data/few_documents.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/model/decoder.hpp"
#include "switchyard/train/run_config.hpp"
#include "switchyard/train/run_ranks.hpp"

namespace switchyard {

/// Held-out text, cut into micro-batches of one domain that have the size of the training micro-batches.
struct HeldoutSet {
  std::vector<Batch> micro_batches;
  std::vector<std::string> domains;
  int64_t sequences = 0;
};

/// What corrects choices at evaluation, as in training.
struct Selection {
  at::Tensor offsets_LE{};  // undefined: nothing
  SelectionScore score = SelectionScore::Probs;
};

/// Reads the held-out sequences that `config` asks for.
/// @throws DataError naming a domain that has too few, UsageError an unknown one
[[nodiscard]] HeldoutSet load_heldout(const Dataset& dataset, const RunConfig& config);

/// Documents of each domain that tokens of the set come from, in the order of its domains.
[[nodiscard]] std::vector<DomainDocuments> count_documents(const HeldoutSet& heldout);

struct EvaluationTask {
  Selection selection{};       // offsets of BalanceState that choose beside the scores; they are not changed
  int64_t permutations = 200;  // document permutations behind the nulls
  uint64_t seed = 0;           // of the run: keys routers that draw at random, and the permutations
  int64_t step = 0;            // optimizer steps done; only written into the record
  /// Tokens of a forward: enough to keep the processor busy, few enough for any memory. Micro-batches are not cut.
  int64_t forward_tokens = 4096;
};

/// Each rank runs its part of the forwards; counts and losses are added up, so the numbers are those of one process. Collective.
/// @param heldout  the same on every rank
/// @return the record on the first rank, nothing on the others
[[nodiscard]] std::optional<EvaluationRecord> evaluate(Decoder& model, const HeldoutSet& heldout, const EvaluationTask& task,
                                                       RunRanks& ranks);

}  // namespace switchyard
