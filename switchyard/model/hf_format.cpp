#include "switchyard/model/hf_format.hpp"

#include <ATen/ops/equal.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/model/weights_file.hpp"

namespace switchyard {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kHeadName = "lm_head.weight";
constexpr const char* kEmbeddingName = "model.embed_tokens.weight";
constexpr int64_t kMaxPositions = 32768;  // longest row a user should give it; the model itself has no limit

OrderedJson parse_json_file(const std::filesystem::path& path) {
  OrderedJson json = OrderedJson::parse(read_file(path), nullptr, /*allow_exceptions=*/false);
  SWITCHYARD_CHECK(json.is_object(), DataError, path.string(), ": not a JSON object");
  return json;
}

// One value of a config.json, with the file and key in the message when it does not fit.
class Fields {
 public:
  Fields(OrderedJson json, std::string file) : json_(std::move(json)), file_(std::move(file)) {}

  template <typename Value>
  void read(const char* key, Value& value) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null()) return;
    try {
      value = found->get<Value>();
    } catch (const OrderedJson::exception& error) {
      throw DataError(join_text(file_, ": ", key, ": ", error.what()));
    }
  }

  template <typename Value>
  void require(const char* key, Value& value) const {
    SWITCHYARD_CHECK(json_.contains(key), DataError, file_, ": no ", key);
    read(key, value);
  }

  template <typename Value>
  void refuse_unless(const char* key, const Value& supported) const {
    Value value = supported;
    read(key, value);
    SWITCHYARD_CHECK(value == supported, DataError, file_, ": ", key, " is ", OrderedJson(value).dump(), "; this decoder has only ",
                     OrderedJson(supported).dump());
  }

  [[nodiscard]] Fields child(const char* key) const {
    const auto found = json_.find(key);
    if (found == json_.end() || found->is_null()) return {OrderedJson::object(), file_};
    SWITCHYARD_CHECK(found->is_object(), DataError, file_, ": ", key, " is not an object");
    return {*found, join_text(file_, ": ", key)};
  }

  [[nodiscard]] bool has(const char* key) const { return json_.contains(key); }

 private:
  OrderedJson json_;
  std::string file_;
};

OrderedJson config_json(const ModelConfig& config, std::optional<int64_t> eos_id) {
  std::vector<int64_t> dense_layers = config.dense_layers;
  std::sort(dense_layers.begin(), dense_layers.end());
  return {
      {"architectures", {"Qwen3MoeForCausalLM"}},
      {"model_type", "qwen3_moe"},
      {"dtype", "float32"},
      {"vocab_size", config.vocab_size},
      {"hidden_size", config.width},
      {"num_hidden_layers", config.num_layers},
      {"num_attention_heads", config.num_heads},
      {"num_key_value_heads", config.num_kv_heads},
      {"head_dim", config.head_width},
      {"num_experts", config.num_experts},
      {"num_experts_per_tok", config.num_chosen},
      {"moe_intermediate_size", config.expert_width},
      {"norm_topk_prob", config.router.normalize == WeightNormalization::ChosenSum},
      {"decoder_sparse_step", 1},
      {"mlp_only_layers", dense_layers},
      {"intermediate_size", config.dense_width},
      {"hidden_act", "silu"},
      {"rms_norm_eps", config.norm_epsilon},
      {"rope_theta", config.rope_theta},
      {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
      {"max_position_embeddings", kMaxPositions},
      {"initializer_range", config.init_deviation},
      {"tie_word_embeddings", config.tied_embeddings},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"use_sliding_window", false},
      {"output_router_logits", false},
      {"router_aux_loss_coef", 0.0},
      {"bos_token_id", nullptr},
      {"eos_token_id", eos_id ? OrderedJson(*eos_id) : OrderedJson(nullptr)},
      {"pad_token_id", nullptr},
  };
}

void read_rope(const Fields& fields, ModelConfig& config) {
  // transformers 5 writes rope_parameters, earlier ones rope_theta and rope_scaling.
  config.rope_theta = 10000.0;
  fields.read("rope_theta", config.rope_theta);
  const Fields rope = fields.child(fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling");
  rope.read("rope_theta", config.rope_theta);
  rope.refuse_unless("rope_type", std::string("default"));
  rope.refuse_unless("type", std::string("default"));
}

void read_dense_layers(const Fields& fields, const std::string& file, ModelConfig& config) {
  config.dense_layers.clear();
  fields.read("mlp_only_layers", config.dense_layers);
  int64_t sparse_step = 1;
  fields.read("decoder_sparse_step", sparse_step);
  SWITCHYARD_CHECK(sparse_step >= 1, DataError, file, ": decoder_sparse_step is ", sparse_step, "; expected at least 1");
  std::set<int64_t> dense(config.dense_layers.begin(), config.dense_layers.end());
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if ((layer + 1) % sparse_step != 0) dense.insert(layer);
  }
  config.dense_layers.assign(dense.begin(), dense.end());
}

TensorMap read_weights(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(folder / kIndexFile)) return load_tensors(folder / kWeightsFile).tensors;
  const std::filesystem::path index = folder / kIndexFile;
  std::map<std::string, std::string> file_of;
  Fields(parse_json_file(index), index.string()).require("weight_map", file_of);
  std::map<std::string, std::vector<std::string>> names_in;
  for (const auto& [name, file] : file_of) names_in[file].push_back(name);
  TensorMap weights;
  for (const auto& [file, names] : names_in) {
    SWITCHYARD_CHECK(std::filesystem::path(file).filename() == file, DataError, index.string(), ": weight file '", file,
                     "' is not in the same folder");
    // What the index does not place here is left: a file may still hold a tensor's values of an earlier save.
    TensorMap held = load_tensors(folder / file).tensors;
    for (const std::string& name : names) {
      const auto found = held.find(name);
      SWITCHYARD_CHECK(found != held.end(), DataError, index.string(), ": weight_map places tensor '", name, "' in '", file,
                       "', which has no such tensor; fetch or save the model again");
      weights.insert(held.extract(found));
    }
  }
  return weights;
}

void take_weights(Decoder& model, TensorMap weights, const std::string& folder) {
  const c10::NoGradGuard no_grad;
  model.set_named_weights([&](const NamedTensor& target) {
    const auto found = weights.find(target.name);
    SWITCHYARD_CHECK(found != weights.end(), DataError, folder, ": no tensor '", target.name, "' of the ",
                     target.tensor.sizes(), " that config.json asks for");
    SWITCHYARD_CHECK(found->second.sizes() == target.tensor.sizes() && found->second.is_floating_point(), DataError, folder,
                     ": tensor '", target.name, "' is ", found->second.scalar_type(), " ", found->second.sizes(),
                     "; config.json asks for floating-point ", target.tensor.sizes());
    target.tensor.copy_(found->second);
    if (target.name == kEmbeddingName && model.config().tied_embeddings && weights.contains(kHeadName)) {
      SWITCHYARD_CHECK(at::equal(weights.at(kHeadName), found->second), DataError, folder,
                       ": tie_word_embeddings is true, but ", kHeadName, " differs from ", kEmbeddingName);
      weights.erase(kHeadName);
    }
    weights.erase(target.name);
  });
  SWITCHYARD_CHECK(weights.empty(), DataError, folder, ": tensor '", weights.empty() ? "" : weights.begin()->first,
                   "' and ", weights.empty() ? 0 : weights.size() - 1, " others have no place in the model of config.json");
}

}  // namespace

void check_exportable(const ModelConfig& config) {
  SWITCHYARD_CHECK(config.shared_expert_width == 0, UsageError, "export: the model has a shared expert of width ",
                   config.shared_expert_width, ", which the Qwen3-MoE format cannot hold; nothing was written");
  SWITCHYARD_CHECK(config.num_moe_layers() == 0 || config.router.name == "top_k", UsageError, "export: router '", config.router.name,
                   "' cannot be expressed in the Qwen3-MoE format, which has only top_k softmax; nothing was written");
}

void export_hf(const Decoder& model, const std::filesystem::path& folder, std::optional<int64_t> eos_id) {
  check_exportable(model.config());
  SWITCHYARD_CHECK(model.num_expert_ranks() == 1, UsageError, "export: the experts are divided over ", model.num_expert_ranks(),
                   " ranks, and this one holds its share only; save a checkpoint and export that from one process; nothing was written");
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  SWITCHYARD_CHECK(!error, DataError, "export: cannot make folder ", folder.string(), ": ", error.message());
  TensorMap weights;
  for (const NamedTensor& weight : model.named_weights()) weights.emplace(weight.name, weight.tensor.to(at::kFloat));
  save_tensors(folder / kWeightsFile, weights, {{"format", "pt"}});
  write_file_atomically(folder / kConfigFile, config_json(model.config(), eos_id).dump(2) + "\n");
}

ModelConfig read_hf_config(const std::filesystem::path& folder) {
  const std::string file = (folder / kConfigFile).string();
  const Fields fields(parse_json_file(folder / kConfigFile), file);
  std::string model_type;
  fields.require("model_type", model_type);
  SWITCHYARD_CHECK(model_type == "qwen3_moe", DataError, file, ": model_type is '", model_type, "'; expected 'qwen3_moe'");
  fields.refuse_unless("hidden_act", std::string("silu"));
  fields.refuse_unless("attention_bias", false);
  fields.refuse_unless("use_sliding_window", false);

  ModelConfig config;
  fields.require("vocab_size", config.vocab_size);
  fields.require("hidden_size", config.width);
  fields.require("num_hidden_layers", config.num_layers);
  fields.require("num_attention_heads", config.num_heads);
  fields.require("num_key_value_heads", config.num_kv_heads);
  config.head_width = config.width / std::max<int64_t>(config.num_heads, 1);
  fields.read("head_dim", config.head_width);
  fields.require(fields.has("num_experts") ? "num_experts" : "num_local_experts", config.num_experts);
  fields.require("num_experts_per_tok", config.num_chosen);
  fields.require("moe_intermediate_size", config.expert_width);
  fields.read("intermediate_size", config.dense_width);
  bool normalized = false;
  fields.read("norm_topk_prob", normalized);
  config.router.name = "top_k";
  config.router.normalize = normalized ? WeightNormalization::ChosenSum : WeightNormalization::None;
  fields.read("rms_norm_eps", config.norm_epsilon);
  fields.read("initializer_range", config.init_deviation);
  fields.read("tie_word_embeddings", config.tied_embeddings);
  read_rope(fields, config);
  read_dense_layers(fields, file, config);
  try {
    config.validate(file);
  } catch (const ConfigError& error) {
    throw DataError(error.what());
  }
  return config;
}

Decoder import_hf(const std::filesystem::path& folder, ComputeType compute) {
  Decoder model(read_hf_config(folder), compute, /*num_domains=*/0, /*seed=*/0);
  take_weights(model, read_weights(folder), folder.string());
  return model;
}

}  // namespace switchyard
