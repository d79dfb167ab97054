#include "tests/train/fixtures.hpp"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <string>

#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/data/manifest.hpp"
#include "switchyard/data/shard.hpp"

namespace switchyard {
namespace {

constexpr int64_t kRowLength = 8;

/// Rows of the given numbers of valid tokens; the last valid token of a row has no target.
Batch make_batch(const std::vector<int64_t>& valid_tokens, int64_t micro_batch, Rng& rng) {
  const auto rows = static_cast<int64_t>(valid_tokens.size());
  Batch batch;
  batch.ids_BS = at::zeros({rows, kRowLength}, at::kLong);
  batch.targets_BS = at::full({rows, kRowLength}, kIgnoredTarget, at::kLong);
  batch.domain_T = at::full({rows * kRowLength}, -1, at::kLong);
  batch.document_T = at::full({rows * kRowLength}, -1, at::kLong);
  batch.segment_T = at::full({rows * kRowLength}, -1, at::kLong);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t s = 0; s < valid_tokens[static_cast<size_t>(row)]; ++s) {
      const int64_t token = row * kRowLength + s;
      batch.ids_BS[row][s] = static_cast<int64_t>(rng.below(kTestVocabulary));
      if (s + 1 < valid_tokens[static_cast<size_t>(row)]) {
        batch.targets_BS[row][s] = static_cast<int64_t>(rng.below(kTestVocabulary));
      }
      batch.domain_T[token] = micro_batch % 3;
      batch.document_T[token] = 100 * micro_batch + row;
      batch.segment_T[token] = row;
    }
    batch.segment_tokens.push_back(valid_tokens[static_cast<size_t>(row)]);
    batch.segment_micro_batch.push_back(micro_batch);
  }
  return batch;
}

SplitRecord write_split(const std::filesystem::path& folder, const std::string& file, int64_t domain, int64_t documents,
                        Rng& rng) {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> offsets = {0};
  for (int64_t document = 0; document < documents; ++document) {
    const uint64_t length = 20 + rng.below(30);
    for (uint64_t i = 0; i < length; ++i) {
      const uint64_t pattern = 1 + static_cast<uint64_t>(domain) * 13 + i % 5;
      tokens.push_back(static_cast<int32_t>(rng.below(4) == 0 ? 1 + rng.below(kTestVocabulary - 1) : pattern));
    }
    tokens.push_back(0);
    offsets.push_back(tokens.size());
  }
  write_shard(folder / file, tokens, offsets, kTestVocabulary);
  return {file, sha256_file(folder / file), documents, static_cast<int64_t>(tokens.size())};
}

}  // namespace

std::vector<Batch> make_micro_batches(uint64_t seed) {
  Rng rng(seed, "test_batches");
  return {make_batch({8, 5}, 0, rng), make_batch({8}, 1, rng), make_batch({0}, 2, rng), make_batch({3, 8, 6}, 3, rng)};
}

ModelConfig tiny_model() {
  ModelConfig model;
  model.vocab_size = kTestVocabulary;
  model.width = 16;
  model.num_layers = 2;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_width = 8;
  model.num_experts = 6;
  model.num_chosen = 2;
  model.expert_width = 16;
  model.init_deviation = 0.3;
  model.router.init_deviation = 0.5;
  return model;
}

void write_test_dataset(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  Rng rng(3, "test_dataset");
  Manifest manifest;
  manifest.source = "folder";
  manifest.vocab_size = kTestVocabulary;
  manifest.heldout_fraction = 0.2;
  const std::vector<std::string> names = {"alpha", "beta", "gamma"};
  for (size_t domain = 0; domain < names.size(); ++domain) {
    DomainRecord record;
    record.name = names[domain];
    record.train = write_split(folder, names[domain] + ".train.tokens", static_cast<int64_t>(domain), 12, rng);
    record.heldout = write_split(folder, names[domain] + ".heldout.tokens", static_cast<int64_t>(domain), 6, rng);
    record.documents = 18;
    manifest.domains.push_back(record);
  }
  write_file_atomically(folder / "manifest.json", manifest_to_json(manifest));
}

RunConfig tiny_run(const std::filesystem::path& dataset) {
  RunConfig config;
  config.name = "tiny";
  config.seed = 5;
  config.steps = 6;
  config.data.path = dataset.string();
  config.data.batcher.sequence_length = 16;
  config.data.batcher.sequences_per_micro_batch = 2;
  config.data.batcher.micro_batches = 3;
  config.model = tiny_model();
  config.balance.coefficient = 0.1;
  config.optimizer.warmup_steps = 2;
  config.execution.dtype = ComputeType::Float32;
  config.execution.threads = 1;
  config.checkpoint.every = 3;
  config.evaluation.sequences_per_domain = 4;
  config.evaluation.permutations = 20;
  return config;
}

}  // namespace switchyard
