#include "tests/train/fixtures.hpp"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <map>
#include <string>

#include "switchyard/core/rng.hpp"
#include "tests/data/made_dataset.hpp"

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

/// A pattern of five tokens that goes round; every fourth token or so is any other.
std::vector<std::vector<int32_t>> noisy_documents(int64_t count, uint64_t first_token, Rng& rng) {
  std::vector<std::vector<int32_t>> documents(static_cast<size_t>(count));
  for (std::vector<int32_t>& tokens : documents) {
    const uint64_t length = 20 + rng.below(30);
    for (uint64_t i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(rng.below(4) == 0 ? 3 + rng.below(kTestVocabulary - 3) : first_token + i % 5));
    }
  }
  return documents;
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
  Rng rng(3, "test_dataset");
  std::map<std::string, test::DomainTokens> domains;
  uint64_t first_token = 3;  // the three before are special
  for (const char* name : {"alpha", "beta", "gamma"}) {
    domains[name] = {noisy_documents(12, first_token, rng), noisy_documents(6, first_token, rng)};
    first_token += 12;
  }
  test::make_dataset(folder, domains, kTestVocabulary);
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
