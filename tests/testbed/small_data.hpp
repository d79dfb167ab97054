#pragma once
// A data set for runs that do not train, and the settings under which it is enough.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "switchyard/core/files.hpp"
#include "switchyard/data/manifest.hpp"
#include "switchyard/data/shard.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard::test {

inline constexpr int64_t kSmallVocabulary = 16;

inline SplitRecord write_split(const std::filesystem::path& folder, const std::string& file, int64_t documents, int64_t length) {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> offsets = {0};
  for (int64_t document = 0; document < documents; ++document) {
    for (int64_t i = 0; i < length; ++i) tokens.push_back(static_cast<int32_t>(i + 1 == length ? 2 : 3 + (i + document) % 5));
    offsets.push_back(tokens.size());
  }
  write_shard(folder / file, tokens, offsets, kSmallVocabulary);
  return {file, sha256_file(folder / file), documents, static_cast<int64_t>(tokens.size())};
}

/// Two domains of 240 held-out tokens each, in as many documents as asked for.
inline void write_small_data(const std::filesystem::path& folder, int64_t heldout_documents) {
  std::filesystem::create_directories(folder);
  Manifest manifest;
  manifest.source = "folder";
  manifest.vocab_size = kSmallVocabulary;
  manifest.end_of_document = 2;
  for (const std::string name : {"ada", "bob"}) {
    DomainRecord record;
    record.name = name;
    record.train = write_split(folder, name + ".train.tokens", 12, 20);
    record.heldout = write_split(folder, name + ".heldout.tokens", heldout_documents, 240 / heldout_documents);
    record.documents = 12 + heldout_documents;
    manifest.domains.push_back(record);
  }
  write_file_atomically(folder / "manifest.json", manifest_to_json(manifest));
}

/// Reads all of the held-out text but its last tokens.
inline void use_small_data(RunConfig& config, const std::filesystem::path& folder) {
  config.data.path = folder.string();
  config.data.batcher.sequence_length = 10;
  config.evaluation.sequences_per_domain = 23;
  config.model.vocab_size = kSmallVocabulary;
}

}  // namespace switchyard::test
