#include "switchyard/model/flops.hpp"

namespace switchyard {
namespace {

/// Weights of one matrix or feed-forward layer of each kind.
struct Sizes {
  double table = 0.0;  // embedding or head
  double attention = 0.0;
  double router = 0.0;
  double expert = 0.0;
  double shared = 0.0;
  double dense = 0.0;
  double moe_layers = 0.0, dense_layers = 0.0;  // how many
};

Sizes sizes_of(const ModelConfig& config) {
  const auto width = static_cast<double>(config.width);
  const double heads = static_cast<double>(config.num_heads) + static_cast<double>(config.num_kv_heads);
  return {.table = width * static_cast<double>(config.vocab_size),
          .attention = 2.0 * width * heads * static_cast<double>(config.head_width),
          .router = width * static_cast<double>(config.num_experts),
          .expert = 3.0 * width * static_cast<double>(config.expert_width),
          .shared = 3.0 * width * static_cast<double>(config.shared_expert_width),
          .dense = 3.0 * width * static_cast<double>(config.dense_width),
          .moe_layers = static_cast<double>(config.num_moe_layers()),
          .dense_layers = static_cast<double>(config.dense_layers.size())};
}

}  // namespace

double forward_flops(const ModelConfig& config, int64_t tokens, int64_t positions) {
  const Sizes sizes = sizes_of(config);
  const double layers = sizes.moe_layers + sizes.dense_layers;
  const double weights_met = layers * sizes.attention + sizes.dense_layers * sizes.dense + sizes.table +
                             sizes.moe_layers * (static_cast<double>(config.num_chosen) * sizes.expert + sizes.shared + sizes.router);
  const auto query_width = static_cast<double>(config.num_heads * config.head_width);
  const double pairs = 2.0 * query_width * static_cast<double>(positions + 1);  // two products over half the pairs
  return (2.0 * weights_met + layers * pairs) * static_cast<double>(tokens);
}

WeightCounts count_weights(const ModelConfig& config) {
  const Sizes sizes = sizes_of(config);
  const double layers = sizes.moe_layers + sizes.dense_layers;
  return {.experts = sizes.moe_layers * static_cast<double>(config.num_experts) * sizes.expert,
          .others = (config.tied_embeddings ? 1.0 : 2.0) * sizes.table + layers * sizes.attention +
                    sizes.moe_layers * sizes.shared + sizes.dense_layers * sizes.dense};
}

}  // namespace switchyard
