// Our own round trip and refusals; the comparison with transformers is tests/python/test_hf_parity.py.
#include "switchyard/model/hf_format.hpp"

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/tiny.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/model/weights_file.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing::random_batch;
using testing::tiny_config;

class HfFormat : public ::testing::Test {
 protected:
  void change_config(const std::string& key, const nlohmann::json& value) {
    nlohmann::json config = nlohmann::json::parse(read_file(folder_ / "config.json"));
    config[key] = value;
    write_file_atomically(folder_ / "config.json", config.dump());
  }

  void expect_import_refused(const std::string& message) {
    EXPECT_THAT([&] { (void)import_hf(folder_, ComputeType::Float32); }, ThrowsMessage<DataError>(HasSubstr(message)));
  }

  test::ScratchFolder scratch_;
  std::filesystem::path folder_ = scratch_.path() / "model";
};

TEST_F(HfFormat, ReadsBackWhatItWrote) {
  for (const bool tied : {false, true}) {
    ModelConfig config = tiny_config();
    config.num_layers = 3;
    config.dense_layers = {2, 0};
    config.tied_embeddings = tied;
    config.router.normalize = tied ? WeightNormalization::None : WeightNormalization::ChosenSum;
    Decoder model(config, ComputeType::BFloat16, 1, 3);
    export_hf(model, folder_);
    Decoder read = import_hf(folder_, ComputeType::BFloat16);
    const auto expected = model.named_weights(), found = read.named_weights();
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(at::equal(found[i].tensor, expected[i].tensor)) << expected[i].name;
    }
    const Batch batch = random_batch(2, 7, config.vocab_size, 1);
    EXPECT_TRUE(at::equal(model.forward(batch, {}), read.forward(batch, {})));
    config.dense_layers = {0, 2};
    config.router.init_deviation = read.config().router.init_deviation;  // not part of the format
    EXPECT_EQ(read.config(), config);
  }
}

TEST_F(HfFormat, WritesHuggingFaceNames) {
  export_hf(Decoder(tiny_config(), ComputeType::Float32, 1, 3), folder_);
  const TensorMap weights = load_tensors(folder_ / "model.safetensors").tensors;
  EXPECT_EQ(weights.at("model.layers.1.mlp.experts.3.gate_proj.weight").sizes(), (c10::IntArrayRef{5, 12}));
  EXPECT_EQ(weights.at("model.layers.0.mlp.experts.0.down_proj.weight").sizes(), (c10::IntArrayRef{12, 5}));
  EXPECT_EQ(weights.at("model.layers.0.self_attn.k_proj.weight").sizes(), (c10::IntArrayRef{12, 12}));
  EXPECT_EQ(weights.at("model.layers.0.mlp.gate.weight").sizes(), (c10::IntArrayRef{4, 12}));
  EXPECT_EQ(weights.size(), 3U + 2U * (2U + 6U + 1U + 4U * 3U));
}

TEST_F(HfFormat, RefusesToExportWhatTheFormatCannotHold) {
  ModelConfig config = tiny_config();
  config.shared_expert_width = 4;
  EXPECT_THAT([&] { export_hf(Decoder(config, ComputeType::Float32, 1, 3), folder_); },
              ThrowsMessage<UsageError>(HasSubstr("shared expert")));
  config = tiny_config();
  config.router.name = "random";
  EXPECT_THAT([&] { export_hf(Decoder(config, ComputeType::Float32, 1, 3), folder_); },
              ThrowsMessage<UsageError>(HasSubstr("router 'random'")));
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

TEST_F(HfFormat, RefusesToExportAShareOfTheExperts) {
  run_ranks(2, [&](Communicator& comm) {
    const Decoder part(tiny_config(), ComputeType::Float32, 1, 3, &comm);
    EXPECT_THAT([&] { export_hf(part, folder_); }, ThrowsMessage<UsageError>(HasSubstr("divided over 2 ranks")));
  });
  EXPECT_FALSE(std::filesystem::exists(folder_));
}

TEST_F(HfFormat, RefusesConfigsThatMeanAnotherModel) {
  export_hf(Decoder(tiny_config(), ComputeType::Float32, 1, 3), folder_);
  const std::string good = read_file(folder_ / "config.json");
  const auto expect_change_refused = [&](const std::string& key, const nlohmann::json& value, const std::string& message) {
    change_config(key, value);
    expect_import_refused(message);
    write_file_atomically(folder_ / "config.json", good);
  };
  expect_change_refused("model_type", "llama", "model_type");
  expect_change_refused("hidden_act", "gelu", "hidden_act");
  expect_change_refused("attention_bias", true, "attention_bias");
  expect_change_refused("use_sliding_window", true, "use_sliding_window");
  expect_change_refused("rope_parameters", {{"rope_type", "yarn"}, {"rope_theta", 1e4}}, "rope_type");
  expect_change_refused("hidden_size", "wide", "hidden_size");
  expect_change_refused("num_experts_per_tok", 9, "num_chosen");
  expect_change_refused("num_hidden_layers", 3, "model.layers.2");
  expect_change_refused("num_hidden_layers", 1, "no place");
  expect_change_refused("moe_intermediate_size", 6, "gate_proj");
  write_file_atomically(folder_ / "config.json", "{");
  expect_import_refused("JSON");
}

TEST_F(HfFormat, ReadsShardsByTheirIndex) {
  const Decoder model(tiny_config(), ComputeType::Float32, 1, 3);
  export_hf(model, folder_);
  TensorMap first = load_tensors(folder_ / "model.safetensors").tensors;
  TensorMap second;
  second.insert(first.extract("lm_head.weight"));
  nlohmann::json index = {{"weight_map", {{"lm_head.weight", "b.safetensors"}}}};
  for (const auto& [name, tensor] : first) index["weight_map"][name] = "a.safetensors";
  save_tensors(folder_ / "a.safetensors", first);
  save_tensors(folder_ / "b.safetensors", second);
  std::filesystem::remove(folder_ / "model.safetensors");
  write_file_atomically(folder_ / "model.safetensors.index.json", index.dump());
  const Decoder read = import_hf(folder_, ComputeType::Float32);
  EXPECT_TRUE(at::equal(read.named_weights().back().tensor, model.named_weights().back().tensor));
  // What the index places elsewhere, or nowhere, does not count.
  first["lm_head.weight"] = at::zeros_like(second.at("lm_head.weight"));
  first["left.over"] = at::ones({3}, at::kFloat);
  save_tensors(folder_ / "a.safetensors", first);
  const Decoder beside_stale = import_hf(folder_, ComputeType::Float32);
  EXPECT_TRUE(at::equal(beside_stale.named_weights().back().tensor, model.named_weights().back().tensor));
  index["weight_map"]["model.norm.weight"] = "b.safetensors";
  write_file_atomically(folder_ / "model.safetensors.index.json", index.dump());
  expect_import_refused("places tensor 'model.norm.weight' in 'b.safetensors', which has no such tensor");
  index["weight_map"]["lm_head.weight"] = "../b.safetensors";
  write_file_atomically(folder_ / "model.safetensors.index.json", index.dump());
  expect_import_refused("same folder");
}

TEST_F(HfFormat, TurnsASparseStepIntoDenseLayers) {
  ModelConfig config = tiny_config();
  config.dense_layers = {0};
  export_hf(Decoder(config, ComputeType::Float32, 1, 3), folder_);
  change_config("mlp_only_layers", nlohmann::json::array());
  change_config("decoder_sparse_step", 2);
  EXPECT_EQ(read_hf_config(folder_).dense_layers, std::vector<int64_t>{0});
}

}  // namespace
}  // namespace switchyard
