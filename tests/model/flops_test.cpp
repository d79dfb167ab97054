#include "switchyard/model/flops.hpp"

#include <gtest/gtest.h>

#include "switchyard/model/decoder.hpp"

namespace switchyard {
namespace {

ModelConfig small_model() {
  ModelConfig config;
  config.vocab_size = 100;
  config.width = 8;
  config.num_layers = 1;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_width = 2;
  config.num_experts = 6;
  config.num_chosen = 2;
  config.expert_width = 5;
  return config;
}

// A token: q, k, v 2*8*(8+4+4), out 2*8*8, attention of 3 positions 2 products * 2 * 8 * (1+2+3)/3, experts 2 * 3 * 2*8*5,
// router 2*8*6, head 2*8*100.
constexpr double kPerToken = 256 + 128 + 64 + 480 + 96 + 1600;

TEST(Flops, OfOneLayerByHand) { EXPECT_DOUBLE_EQ(forward_flops(small_model(), 6, 3), 6 * kPerToken); }

TEST(Flops, OfDenseLayersAndSharedExperts) {
  ModelConfig config = small_model();
  config.num_layers = 2;
  config.dense_layers = {0};
  config.dense_width = 7;
  config.shared_expert_width = 3;
  EXPECT_DOUBLE_EQ(forward_flops(config, 1, 3), kPerToken + 256 + 128 + 64 + 6 * 8 * 7 + 6 * 8 * 3);
}

TEST(Weights, AreThoseOfTheModel) {
  ModelConfig config = small_model();
  config.num_layers = 3;
  config.dense_layers = {1};
  config.dense_width = 7;
  config.shared_expert_width = 3;
  for (const bool tied : {false, true}) {
    config.tied_embeddings = tied;
    Decoder model(config, ComputeType::Float32, 2, 0);
    double experts = 0.0, others = 0.0;
    for (const Parameter* parameter : model.parameters()) {
      const auto count = static_cast<double>(parameter->compute.numel());
      const bool is_router = parameter->name.ends_with("mlp.gate.weight");
      if (parameter->compute.dim() < 2 || is_router) continue;
      (parameter->name.find(".experts.") == std::string::npos ? others : experts) += count;
    }
    EXPECT_EQ(count_weights(config).experts, experts);
    EXPECT_EQ(count_weights(config).others, others);
  }
}

}  // namespace
}  // namespace switchyard
