#pragma once
// Sizes of a Qwen3-MoE decoder.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/router/router.hpp"

namespace switchyard {

enum class ComputeType { Auto, Float32, BFloat16, Float64 };  // Auto: the faster of bf16 and fp32 (compute_type.hpp)
[[nodiscard]] std::string to_string(const ComputeType& value);
void parse(std::string_view text, ComputeType& value);

enum class Recompute { None, Layers };  // Layers: keep only each layer's input, run the layer again in backward
[[nodiscard]] std::string to_string(const Recompute& value);
void parse(std::string_view text, Recompute& value);

struct ModelConfig {
  int64_t vocab_size = 8192;         // V
  int64_t width = 128;               // D
  int64_t num_layers = 4;            // L
  int64_t num_heads = 4;             // H
  int64_t num_kv_heads = 2;          // divides num_heads
  int64_t head_width = 32;
  int64_t num_experts = 16;          // E
  int64_t num_chosen = 2;            // K
  int64_t expert_width = 128;        // F
  int64_t shared_expert_width = 0;   // 0: no shared expert
  std::vector<int64_t> dense_layers; // layers with a plain SwiGLU instead of experts
  int64_t dense_width = 512;         // F of dense layers
  double rope_theta = 1e6;
  double norm_epsilon = 1e-6;
  double init_deviation = 0.02;
  bool tied_embeddings = false;
  RouterConfig router;

  [[nodiscard]] int64_t num_moe_layers() const { return num_layers - static_cast<int64_t>(dense_layers.size()); }

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("vocab_size", vocab_size, "vocabulary V");
    visit("width", width, "model width D");
    visit("num_layers", num_layers, "layers L");
    visit("num_heads", num_heads, "attention heads H");
    visit("num_kv_heads", num_kv_heads, "key and value heads, divides num_heads");
    visit("head_width", head_width, "width of a head, even");
    visit("num_experts", num_experts, "experts E");
    visit("num_chosen", num_chosen, "experts chosen per token K");
    visit("expert_width", expert_width, "width of an expert F");
    visit("shared_expert_width", shared_expert_width, "width of the shared expert, 0 for none");
    visit("dense_layers", dense_layers, "layers with a dense feed-forward instead of experts");
    visit("dense_width", dense_width, "width of dense layers");
    visit("rope_theta", rope_theta, "base of the rotary embedding");
    visit("norm_epsilon", norm_epsilon, "epsilon of RMSNorm");
    visit("init_deviation", init_deviation, "deviation of initial weights");
    visit("tied_embeddings", tied_embeddings, "output head shares the embedding");
    visit("router", router, "router");
  }
  void validate(const std::string& where) const;

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace switchyard
