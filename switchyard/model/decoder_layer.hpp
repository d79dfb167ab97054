#pragma once
// One layer: x + attention(norm(x)), then x + feed-forward(norm(x)). The residual stream is in the compute type.

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/model/attention.hpp"
#include "switchyard/model/feed_forward.hpp"
#include "switchyard/model/layer_input.hpp"
#include "switchyard/model/moe_layer.hpp"

namespace switchyard {

class DecoderLayer {
 public:
  /// @param moe_layer  index among the MoE layers; nothing: a dense layer
  DecoderLayer(const ModelConfig& config, std::optional<int64_t> moe_layer, int64_t num_domains,
               const std::string& prefix, const WeightSource& source);

  /// @param hidden_TD  residual stream, [T, D]; returned with this layer added
  [[nodiscard]] at::Tensor forward(const at::Tensor& hidden_TD, const LayerInput& input, LayerRun run);

  [[nodiscard]] ParameterRefs parameters();
  [[nodiscard]] MoeLayer* moe() { return std::get_if<MoeLayer>(&feed_forward_); }  // null: a dense layer
  [[nodiscard]] std::vector<NamedTensor> named_weights(const MasterValues& values) const;

 private:
  [[nodiscard]] ResidualNorm norm(const at::Tensor& hidden_TD, const at::Tensor& added_TD, const Parameter& weight) const;
  [[nodiscard]] at::Tensor attend(const at::Tensor& normed_TD, const LayerInput& input) const;
  [[nodiscard]] at::Tensor feed_forward(const at::Tensor& normed_TD, const LayerInput& input, LayerRun run);

  double epsilon_;
  Parameter attention_norm_;
  Parameter feed_forward_norm_;
  AttentionLayer attention_;
  std::variant<FeedForward, MoeLayer> feed_forward_;
};

}  // namespace switchyard
