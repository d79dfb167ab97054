#pragma once
// A data set for runs that do not train, and the settings under which it is enough.

#include <cstdint>
#include <filesystem>
#include <vector>

#include "switchyard/train/run_config.hpp"
#include "tests/data/made_dataset.hpp"

namespace switchyard::test {

inline constexpr int64_t kSmallVocabulary = 16;

inline std::vector<std::vector<int32_t>> small_documents(int64_t documents, int64_t length) {
  std::vector<std::vector<int32_t>> all;
  for (int64_t document = 0; document < documents; ++document) {
    std::vector<int32_t>& tokens = all.emplace_back();
    for (int64_t i = 0; i + 1 < length; ++i) tokens.push_back(static_cast<int32_t>(3 + (i + document) % 5));
  }
  return all;
}

/// Two domains of 240 held-out tokens each, in as many documents as asked for.
inline void write_small_data(const std::filesystem::path& folder, int64_t heldout_documents) {
  const DomainTokens tokens{small_documents(12, 20), small_documents(heldout_documents, 240 / heldout_documents)};
  make_dataset(folder, {{"ada", tokens}, {"bob", tokens}}, kSmallVocabulary);
}

/// Reads all of the held-out text but its last tokens.
inline void use_small_data(RunConfig& config, const std::filesystem::path& folder) {
  config.data.path = folder.string();
  config.data.batcher.sequence_length = 10;
  config.evaluation.sequences_per_domain = 23;
  config.model.vocab_size = kSmallVocabulary;
}

}  // namespace switchyard::test
