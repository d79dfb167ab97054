#include "switchyard/model/config.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

template <typename Value>
struct Spelling {
  Value value;
  std::string_view text;
};

constexpr std::array kComputeTypes = {
    Spelling<ComputeType>{ComputeType::Auto, "auto"}, Spelling<ComputeType>{ComputeType::Float32, "float32"},
    Spelling<ComputeType>{ComputeType::BFloat16, "bfloat16"}, Spelling<ComputeType>{ComputeType::Float64, "float64"}};
constexpr std::array kRecomputes = {Spelling<Recompute>{Recompute::None, "none"},
                                    Spelling<Recompute>{Recompute::Layers, "layers"}};

template <typename Value, size_t Size>
std::string spelling(const std::array<Spelling<Value>, Size>& table, Value value) {
  for (const Spelling<Value>& entry : table) {
    if (entry.value == value) return std::string(entry.text);
  }
  throw UsageError(join_text("no spelling for enum value ", static_cast<int>(value)));
}

template <typename Value, size_t Size>
Value from_spelling(const std::array<Spelling<Value>, Size>& table, std::string_view what, std::string_view text) {
  std::vector<std::string> known;
  for (const Spelling<Value>& entry : table) {
    if (entry.text == text) return entry.value;
    known.emplace_back(entry.text);
  }
  throw ConfigError(unknown_name(what, text, known));
}

}  // namespace

std::string to_string(const ComputeType& value) { return spelling(kComputeTypes, value); }
void parse(std::string_view text, ComputeType& value) { value = from_spelling(kComputeTypes, "compute type", text); }
std::string to_string(const Recompute& value) { return spelling(kRecomputes, value); }
void parse(std::string_view text, Recompute& value) { value = from_spelling(kRecomputes, "recompute mode", text); }

void ModelConfig::validate(const std::string& where) const {
  const auto at_least = [&](std::string_view key, int64_t value, int64_t lowest) {
    SWITCHYARD_CHECK(value >= lowest, ConfigError, where, ": ", key, " is ", value, "; expected at least ", lowest);
  };
  const bool has_moe_layers = num_moe_layers() > 0;
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
  if (!dense_layers.empty()) at_least("dense_width", dense_width, 1);
  SWITCHYARD_CHECK(num_heads % num_kv_heads == 0, ConfigError, where, ": num_heads ", num_heads,
                   " is not a multiple of num_kv_heads ", num_kv_heads,
                   "; each key head serves num_heads / num_kv_heads query heads");
  SWITCHYARD_CHECK(head_width % 2 == 0, ConfigError, where, ": head_width ", head_width,
                   " is odd; the rotary embedding turns pairs, so it must be even");
  SWITCHYARD_CHECK(!has_moe_layers || num_chosen <= num_experts, ConfigError, where, ": num_chosen ", num_chosen,
                   " is more than num_experts ", num_experts);
  for (const int64_t layer : dense_layers) {
    SWITCHYARD_CHECK(layer >= 0 && layer < num_layers, ConfigError, where, ": dense_layers has layer ", layer,
                     "; expected 0 to ", num_layers - 1);
    SWITCHYARD_CHECK(std::count(dense_layers.begin(), dense_layers.end(), layer) == 1, ConfigError, where,
                     ": dense_layers has layer ", layer, " more than once");
  }
  const auto finite = [&](std::string_view key, double value, bool in_range, std::string_view range) {
    SWITCHYARD_CHECK(in_range && std::isfinite(value), ConfigError, where, ": ", key, " is ", value,
                     "; expected a finite number, ", range);
  };
  finite("rope_theta", rope_theta, rope_theta > 0.0, "more than 0");
  finite("norm_epsilon", norm_epsilon, norm_epsilon >= 1e-20, "1e-20 or more: norms are taken in fp32");
  finite("init_deviation", init_deviation, init_deviation >= 0.0, "0 or more");
}

}  // namespace switchyard
