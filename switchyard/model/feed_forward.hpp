#pragma once
// A plain SwiGLU feed-forward: dense layers and the shared expert. T tokens, D width, F its own width.

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "switchyard/core/parameter.hpp"
#include "switchyard/model/weights.hpp"

namespace switchyard {

class FeedForward {
 public:
  /// @param prefix  "model.layers.0.mlp."
  FeedForward(int64_t width, int64_t inner_width, const std::string& prefix, const WeightSource& source);

  [[nodiscard]] at::Tensor forward(const at::Tensor& normed_TD) const;
  [[nodiscard]] ParameterRefs parameters();
  [[nodiscard]] std::vector<NamedTensor> named_weights(const MasterValues& values) const;

 private:
  std::vector<WeightSource::Part> parts_;  // of gate_up_
  Parameter gate_up_;                      // [2F, D]
  Parameter down_;                         // [D, F]
};

}  // namespace switchyard
