#pragma once
// Small things to train on: batches of random tokens, a data set of three made-up domains, a model that fits them.

#include <filesystem>
#include <memory>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/communicator.hpp"
#include "switchyard/data/batch.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

inline constexpr int64_t kTestVocabulary = 40;

/// Micro-batches of different size, one domain each, with padding at the end of one row and unscored targets at another; the
/// third has no valid token at all. Segments are rows.
[[nodiscard]] std::vector<Batch> make_micro_batches(uint64_t seed);

/// What a step of one process is given.
struct Alone {
  std::unique_ptr<Communicator> comm = make_solo_communicator();
  BalanceRanks ranks{*comm};
};

/// Two MoE layers, 6 experts, 2 chosen.
[[nodiscard]] ModelConfig tiny_model();

/// Writes a data set of three domains into `folder`: each repeats its own pattern of tokens with noise.
void write_test_dataset(const std::filesystem::path& folder);

/// A run on that data set: 6 steps of 3 micro-batches, checkpoints every 3, in fp32.
[[nodiscard]] RunConfig tiny_run(const std::filesystem::path& dataset);

}  // namespace switchyard
