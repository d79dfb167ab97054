#pragma once
// Held-out evaluation: the same text for every arm, no gradient, and no trace in weights, balancing state or random streams.

#include <cstdint>
#include <string>
#include <vector>

#include "switchyard/data/batch.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/model/decoder.hpp"
#include "switchyard/train/run_config.hpp"

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

[[nodiscard]] HeldoutSet load_heldout(const Dataset& dataset, const RunConfig& config);

/// @param permutations  document permutations behind the nulls
/// @param seed          of the run: keys routers that draw at random, and the permutations
/// @param step          optimizer steps done; only written into the record
/// @param selection     offsets of BalanceState that choose beside the scores; they are not changed
[[nodiscard]] EvaluationRecord evaluate(Decoder& model, const HeldoutSet& heldout, const Selection& selection,
                                        int64_t permutations, uint64_t seed, int64_t step);

}  // namespace switchyard
