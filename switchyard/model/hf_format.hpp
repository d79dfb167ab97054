#pragma once
// A model as a Hugging Face folder: model.safetensors and config.json of Qwen3MoeForCausalLM (transformers 5.x).

#include <cstdint>
#include <filesystem>
#include <optional>

#include "switchyard/model/decoder.hpp"

namespace switchyard {

/// Writes both files, fp32 masters, into `folder`, made if missing.
/// @param eos_id  token that ends a text, for config.json
/// @throws UsageError for what Qwen3-MoE cannot hold: a shared expert, a router other than top_k; and for a decoder that holds
///         only its rank's share of the experts
void export_hf(const Decoder& model, const std::filesystem::path& folder, std::optional<int64_t> eos_id = std::nullopt);

/// Throws the UsageError of export_hf if such a model cannot be held, before any work is done.
void check_exportable(const ModelConfig& config);

/// Reads config.json. Values that change the result and that this decoder does not have (attention bias, sliding window,
/// scaled rotary embedding, another activation) are refused.
/// @throws DataError naming file and key
[[nodiscard]] ModelConfig read_hf_config(const std::filesystem::path& folder);

/// Reads config and weights, in any floating type: model.safetensors, or each tensor from the file where the weight_map of
/// model.safetensors.index.json places it. Tensors that a file has beside those are ignored.
/// @throws DataError for a missing, surplus or misshapen tensor
[[nodiscard]] Decoder import_hf(const std::filesystem::path& folder, ComputeType compute);

}  // namespace switchyard
