#pragma once
// Qwen3 attention: one projection to queries, keys and values, RMSNorm and rotary embedding per head, causal attention,
// output projection. T tokens, D width; head letters as in kernels/rope.hpp.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "switchyard/core/parameter.hpp"
#include "switchyard/model/config.hpp"
#include "switchyard/model/layer_input.hpp"
#include "switchyard/model/weights.hpp"

namespace switchyard {

class AttentionLayer {
 public:
  /// @param prefix  "model.layers.0.self_attn."
  AttentionLayer(const ModelConfig& config, const std::string& prefix, const WeightSource& source);

  /// @param normed_TD  the layer's normed input
  /// @return [T, D], to be added to the residual stream
  [[nodiscard]] at::Tensor forward(const at::Tensor& normed_TD, const LayerInput& input) const;

  [[nodiscard]] ParameterRefs parameters();
  /// Masters by their Hugging Face names.
  [[nodiscard]] std::vector<NamedTensor> named_weights(const MasterValues& values) const;

 private:
  HeadShape heads_;  // batch and positions 0
  double epsilon_;
  std::vector<WeightSource::Part> parts_;  // of qkv_
  Parameter qkv_;                          // the three projections stacked, [C, D]
  Parameter out_;
  Parameter query_norm_;
  Parameter key_norm_;
};

}  // namespace switchyard
