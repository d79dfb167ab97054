#include "switchyard/model/decoder.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <map>
#include <optional>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/cross_entropy.hpp"
#include "switchyard/kernels/embedding.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/model/checkpointed_layer.hpp"
#include "switchyard/model/decoder_layer.hpp"

namespace switchyard {
namespace {

WeightSource weight_source(const ModelConfig& config, ComputeType compute, uint64_t seed, Communicator* expert_ranks) {
  SWITCHYARD_CHECK(compute != ComputeType::Auto, UsageError,
                   "decoder: compute type auto is not resolved; call resolve_compute_type() first");
  config.validate("model");
  WeightSource source;
  source.seed = seed;
  source.deviation = config.init_deviation;
  source.master_type = compute == ComputeType::Float64 ? at::kDouble : at::kFloat;
  source.compute_type = compute == ComputeType::BFloat16 ? at::kBFloat16 : source.master_type;
  if (expert_ranks != nullptr && expert_ranks->size() > 1) source.expert_ranks = expert_ranks;
  return source;
}

void check_batch(const Batch& batch) {
  SWITCHYARD_CHECK(batch.ids_BS.defined() && batch.ids_BS.dim() == 2 && batch.ids_BS.scalar_type() == at::kLong &&
                       batch.ids_BS.numel() > 0,
                   ShapeError, "decoder: ids_BS must be an int64 tensor [B, S] with at least one token");
  SWITCHYARD_CHECK(batch.segment_T.defined() && batch.segment_T.dim() == 1 &&
                       batch.segment_T.size(0) == batch.ids_BS.numel() && batch.segment_T.scalar_type() == at::kLong,
                   ShapeError, "decoder: segment_T must be an int64 tensor of the ", batch.ids_BS.numel(), " tokens");
}

}  // namespace

struct Decoder::Impl {
  Impl(const ModelConfig& model, ComputeType type, int64_t num_domains, const WeightSource& weights)
      : config(model), compute(type), source(weights) {
    // Looked up in the master: only the rows that occur are cast, and their gradient stays in fp32. A tied table is also
    // the head, a matrix.
    WeightSource table_source = source;
    if (!config.tied_embeddings) table_source.compute_type = source.master_type;
    embedding = table_source.matrix("model.embed_tokens.weight", {config.vocab_size, config.width});
    layers.reserve(static_cast<size_t>(config.num_layers));  // parameters() hands out addresses
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const bool dense = std::find(config.dense_layers.begin(), config.dense_layers.end(), layer) != config.dense_layers.end();
      const std::optional<int64_t> moe_layer = dense ? std::nullopt : std::optional(num_moe_layers++);
      layers.emplace_back(config, moe_layer, num_domains, join_text("model.layers.", layer, "."), source);
    }
    norm = source.norm("model.norm.weight", config.width);
    if (!config.tied_embeddings) head = source.matrix("lm_head.weight", {config.vocab_size, config.width});
  }

  [[nodiscard]] const at::Tensor& head_VD() const { return config.tied_embeddings ? embedding.compute : head.compute; }
  [[nodiscard]] std::vector<NamedTensor> named_weights(const MasterValues& values) const;
  [[nodiscard]] std::shared_ptr<LayerInput> layer_input(const Batch& batch, const ForwardContext& context);

  ModelConfig config;
  ComputeType compute;
  WeightSource source;
  int64_t num_moe_layers = 0;
  Parameter embedding;
  std::vector<DecoderLayer> layers;
  Parameter norm;
  Parameter head;
  RopeTable rope;  // of the longest row seen
};

std::shared_ptr<LayerInput> Decoder::Impl::layer_input(const Batch& batch, const ForwardContext& context) {
  auto input = std::make_shared<LayerInput>();
  input->batch = batch.ids_BS.size(0);
  input->positions = batch.ids_BS.size(1);
  if (!rope.cos_SP.defined() || rope.cos_SP.size(0) < input->positions) {
    rope = make_rope_table(input->positions, config.head_width, config.rope_theta, source.master_type);
  }
  input->rope = rope;
  input->token_T = batch.ids_BS.reshape({-1});
  input->domain_T = batch.domain_T;
  input->document_T = batch.document_T;
  input->segment_T = batch.segment_T;
  const at::Tensor valid_T = batch.segment_T.ge(0);
  if (!valid_T.all().item<bool>()) input->valid_T = valid_T;
  input->context = context;
  return input;
}

Decoder::Decoder(const ModelConfig& config, ComputeType compute, int64_t num_domains, uint64_t seed,
                 Communicator* expert_ranks)
    : impl_(std::make_unique<Impl>(config, compute, num_domains, weight_source(config, compute, seed, expert_ranks))) {}
Decoder::~Decoder() = default;
Decoder::Decoder(Decoder&&) noexcept = default;

at::Tensor Decoder::forward(const Batch& batch, const ForwardContext& context) {
  check_batch(batch);
  SWITCHYARD_CHECK(context.replay_ids_LTK.empty() ||
                       static_cast<int64_t>(context.replay_ids_LTK.size()) == impl_->num_moe_layers,
                   ShapeError, "decoder: ", context.replay_ids_LTK.size(), " recorded choices for ",
                   impl_->num_moe_layers, " MoE layers");
  const std::shared_ptr<const LayerInput> input = impl_->layer_input(batch, context);
  at::Tensor hidden_TD = embed(impl_->embedding.compute, input->token_T, impl_->source.compute_type);
  for (DecoderLayer& layer : impl_->layers) {
    if (context.recompute == Recompute::None) {
      hidden_TD = layer.forward(hidden_TD, *input, LayerRun::First);
      continue;
    }
    std::vector<at::Tensor> leaves;
    for (const Parameter* parameter : layer.parameters()) leaves.push_back(parameter->compute);
    hidden_TD = run_checkpointed(
        hidden_TD, leaves, [&](const at::Tensor& hidden) { return layer.forward(hidden, *input, LayerRun::First); },
        [&layer, input](const at::Tensor& hidden) { return layer.forward(hidden, *input, LayerRun::Again); });
  }
  return rms_norm(hidden_TD, impl_->norm.compute, impl_->config.norm_epsilon);
}

at::Tensor Decoder::loss_sum(const at::Tensor& hidden_TD, const at::Tensor& targets_T) {
  const PartScope part("head and loss");
  return linear_cross_entropy(hidden_TD, impl_->head_VD(), targets_T, kIgnoredTarget);
}

at::Tensor Decoder::token_losses(const at::Tensor& hidden_TD, const at::Tensor& targets_T) {
  return linear_token_losses(hidden_TD, impl_->head_VD(), targets_T, kIgnoredTarget);
}

at::Tensor Decoder::logits_TV(const at::Tensor& hidden_TD) {
  const at::ScalarType wide = impl_->source.master_type;
  return at::mm(hidden_TD.to(wide), impl_->head_VD().to(wide).t());
}

const ModelConfig& Decoder::config() const { return impl_->config; }
ComputeType Decoder::compute_type() const { return impl_->compute; }
int64_t Decoder::num_moe_layers() const { return impl_->num_moe_layers; }
int64_t Decoder::num_expert_ranks() const {
  return impl_->source.expert_ranks == nullptr ? 1 : impl_->source.expert_ranks->size();
}

ParameterRefs Decoder::parameters() {
  ParameterRefs all = {&impl_->embedding};
  for (DecoderLayer& layer : impl_->layers) {
    const ParameterRefs some = layer.parameters();
    all.insert(all.end(), some.begin(), some.end());
  }
  all.push_back(&impl_->norm);
  if (!impl_->config.tied_embeddings) all.push_back(&impl_->head);
  return all;
}

ParameterRefs Decoder::router_weights() {
  ParameterRefs weights;
  for (DecoderLayer& layer : impl_->layers) {
    MoeLayer* moe = layer.moe();
    if (moe != nullptr && moe->router_weight() != nullptr) weights.push_back(moe->router_weight());
  }
  return weights;
}

std::vector<NamedTensor> Decoder::Impl::named_weights(const MasterValues& values) const {
  std::vector<NamedTensor> all = {{embedding.name, values(embedding)}};
  for (const DecoderLayer& layer : layers) {
    const std::vector<NamedTensor> some = layer.named_weights(values);
    all.insert(all.end(), some.begin(), some.end());
  }
  all.push_back({norm.name, values(norm)});
  if (!config.tied_embeddings) all.push_back({head.name, values(head)});
  return all;
}

std::vector<NamedTensor> Decoder::named_weights() const { return impl_->named_weights(master_of); }

void Decoder::set_named_weights(const std::function<void(const NamedTensor& target)>& fill) {
  std::map<const Parameter*, at::Tensor> filled;
  const auto memory_for = [&](const Parameter& parameter) {
    return filled[&parameter] = at::empty(sizes_of(parameter), master_type(parameter));
  };
  for (const NamedTensor& target : impl_->named_weights(memory_for)) fill(target);
  for (Parameter* parameter : parameters()) set_master(*parameter, filled.at(parameter));
}

void Decoder::collect_gradients() {
  for (Parameter* parameter : parameters()) collect_gradient(*parameter);
}

void Decoder::clear_gradients() {
  for (Parameter* parameter : parameters()) {
    parameter->grad.reset();
    parameter->grad_parts.clear();
    parameter->compute.mutable_grad().reset();
  }
}

}  // namespace switchyard
