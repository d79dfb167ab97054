#include "switchyard/model/attention.hpp"

#include <ATen/ops/mm.h>

#include <cmath>

#include "switchyard/kernels/attention.hpp"

namespace switchyard {

AttentionLayer::AttentionLayer(const ModelConfig& config, const std::string& prefix, const WeightSource& source)
    : epsilon_(config.norm_epsilon) {
  heads_.kv_heads = config.num_kv_heads;
  heads_.group = config.num_heads / config.num_kv_heads;
  heads_.head_width = config.head_width;
  parts_ = {{prefix + "q_proj.weight", heads_.query_width()},
            {prefix + "k_proj.weight", heads_.kv_width()},
            {prefix + "v_proj.weight", heads_.kv_width()}};
  qkv_ = source.matrix(prefix + "qkv_proj.weight", {heads_.qkv_width(), config.width}, parts_);
  out_ = source.matrix(prefix + "o_proj.weight", {config.width, heads_.query_width()});
  query_norm_ = source.norm(prefix + "q_norm.weight", config.head_width);
  key_norm_ = source.norm(prefix + "k_norm.weight", config.head_width);
}

at::Tensor AttentionLayer::forward(const at::Tensor& normed_TD, const LayerInput& input) const {
  HeadShape shape = heads_;
  shape.batch = input.batch;
  shape.positions = input.positions;
  const at::Tensor qkv_TC = at::mm(normed_TD, qkv_.compute.t());
  const AttentionHeads heads = split_norm_rotate(qkv_TC, query_norm_.compute, key_norm_.compute, input.rope, shape,
                                                 epsilon_, 1.0 / std::sqrt(static_cast<double>(shape.head_width)));
  return at::mm(causal_attention(heads), out_.compute.t());
}

ParameterRefs AttentionLayer::parameters() { return {&qkv_, &out_, &query_norm_, &key_norm_}; }

std::vector<NamedTensor> AttentionLayer::named_weights(const MasterValues& values) const {
  std::vector<NamedTensor> weights = matrix_parts(values(qkv_), parts_);
  for (const Parameter* parameter : {&out_, &query_norm_, &key_norm_}) weights.push_back({parameter->name, values(*parameter)});
  return weights;
}

}  // namespace switchyard
