#include "switchyard/model/feed_forward.hpp"

#include <ATen/ops/mm.h>

#include "switchyard/kernels/swiglu.hpp"

namespace switchyard {

FeedForward::FeedForward(int64_t width, int64_t inner_width, const std::string& prefix, const WeightSource& source)
    : parts_{{prefix + "gate_proj.weight", inner_width}, {prefix + "up_proj.weight", inner_width}},
      gate_up_(source.matrix(prefix + "gate_up_proj.weight", {2 * inner_width, width}, parts_)),
      down_(source.matrix(prefix + "down_proj.weight", {width, inner_width})) {}

at::Tensor FeedForward::forward(const at::Tensor& normed_TD) const {
  return at::mm(swiglu(at::mm(normed_TD, gate_up_.compute.t())), down_.compute.t());
}

ParameterRefs FeedForward::parameters() { return {&gate_up_, &down_}; }

std::vector<NamedTensor> FeedForward::named_weights(const MasterValues& values) const {
  std::vector<NamedTensor> weights = matrix_parts(values(gate_up_), parts_);
  weights.push_back({down_.name, values(down_)});
  return weights;
}

}  // namespace switchyard
