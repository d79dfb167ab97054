#include "switchyard/model/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kComputeTypes = std::to_array<Spelling<ComputeType>>({{ComputeType::Auto, "auto"},
                                                                     {ComputeType::Float32, "float32"},
                                                                     {ComputeType::BFloat16, "bfloat16"},
                                                                     {ComputeType::Float64, "float64"}});
constexpr auto kRecomputes =
    std::to_array<Spelling<Recompute>>({{Recompute::None, "none"}, {Recompute::Layers, "layers"}});

}  // namespace

std::string to_string(const ComputeType& value) { return spelling_of(kComputeTypes, value); }
void parse(std::string_view text, ComputeType& value) { value = from_spelling("compute type", kComputeTypes, text); }
std::string to_string(const Recompute& value) { return spelling_of(kRecomputes, value); }
void parse(std::string_view text, Recompute& value) { value = from_spelling("recompute mode", kRecomputes, text); }

void ModelConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  const auto at_least = [&](std::string_view key, int64_t value, int64_t lowest) {
    check(value >= lowest, key, value, join_text("at least ", lowest));
  };
  at_least("vocab_size", vocab_size, 1);
  at_least("width", width, 1);
  at_least("num_layers", num_layers, 1);
  at_least("num_heads", num_heads, 1);
  at_least("num_kv_heads", num_kv_heads, 1);
  at_least("head_width", head_width, 2);
  at_least("num_experts", num_experts, 1);
  at_least("num_chosen", num_chosen, 1);
  at_least("expert_width", expert_width, 1);
  at_least("shared_expert_width", shared_expert_width, 0);
  at_least("dense_width", dense_width, 1);
  check(num_heads % num_kv_heads == 0, "num_heads", num_heads,
        join_text("a multiple of num_kv_heads = ", num_kv_heads, ": each key head serves num_heads / num_kv_heads query heads"));
  check(head_width % 2 == 0, "head_width", head_width, "an even number, because the rotary embedding turns pairs");
  check(num_moe_layers() == 0 || num_chosen <= num_experts, "num_chosen", num_chosen,
        join_text("at most num_experts = ", num_experts));
  for (const int64_t layer : dense_layers) {
    check(layer >= 0 && layer < num_layers, "dense_layers", layer, join_text("layers from 0 to ", num_layers - 1));
    check(std::count(dense_layers.begin(), dense_layers.end(), layer) == 1, "dense_layers", join_text(layer, ", more than once"),
          "each layer once");
  }
  const auto finite = [&](std::string_view key, double value, bool in_range, std::string_view range) {
    check(in_range && std::isfinite(value), key, value, join_text("a finite number, ", range));
  };
  finite("rope_theta", rope_theta, rope_theta > 0.0, "more than 0");
  finite("norm_epsilon", norm_epsilon, norm_epsilon >= 1e-20 && norm_epsilon <= 1.0, "1e-20 to 1: norms are taken in fp32");
  finite("init_deviation", init_deviation, init_deviation >= 0.0 && init_deviation <= 1e3, "0 to 1,000: beyond it no gradient is left");
}

}  // namespace switchyard
