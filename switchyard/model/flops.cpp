#include "switchyard/model/flops.hpp"

namespace switchyard {

double forward_flops(const ModelConfig& config, int64_t tokens, int64_t positions) {
  const auto width = static_cast<double>(config.width);
  const auto query_width = static_cast<double>(config.num_heads * config.head_width);
  const auto kv_width = static_cast<double>(config.num_kv_heads * config.head_width);
  const auto dense_layers = static_cast<double>(config.dense_layers.size());
  const auto layers = static_cast<double>(config.num_layers);
  const double projections = 2.0 * width * (query_width + 2.0 * kv_width) + 2.0 * query_width * width;
  const double attention = 2.0 * query_width * static_cast<double>(positions + 1);  // two products over half the pairs
  const double experts =
      6.0 * width * static_cast<double>(config.num_chosen * config.expert_width + config.shared_expert_width) +
      2.0 * width * static_cast<double>(config.num_experts);
  const double dense = 6.0 * width * static_cast<double>(config.dense_width);
  const double per_token = layers * (projections + attention) + (layers - dense_layers) * experts + dense_layers * dense +
                           2.0 * width * static_cast<double>(config.vocab_size);
  return per_token * static_cast<double>(tokens);
}

WeightCounts count_weights(const ModelConfig& config) {
  const auto width = static_cast<double>(config.width);
  const auto query_width = static_cast<double>(config.num_heads) * static_cast<double>(config.head_width);
  const auto kv_width = static_cast<double>(config.num_kv_heads) * static_cast<double>(config.head_width);
  const auto dense_layers = static_cast<double>(config.dense_layers.size());
  const auto layers = static_cast<double>(config.num_layers);
  const double tables = (config.tied_embeddings ? 1.0 : 2.0) * width * static_cast<double>(config.vocab_size);
  const double attention = 2.0 * width * (query_width + kv_width);
  const double expert = 3.0 * width * static_cast<double>(config.expert_width);
  const double shared = 3.0 * width * static_cast<double>(config.shared_expert_width);
  const double dense = 3.0 * width * static_cast<double>(config.dense_width);
  return {(layers - dense_layers) * static_cast<double>(config.num_experts) * expert,
          tables + layers * attention + (layers - dense_layers) * shared + dense_layers * dense};
}

}  // namespace switchyard
