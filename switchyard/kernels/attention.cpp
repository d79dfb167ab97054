#include "switchyard/kernels/attention.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/triu.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/block_attention.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/tile_attention.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_attention(const AttentionHeads& heads) {
  const at::Tensor& query = heads.query_BJSIW;
  SWITCHYARD_CHECK(query.dim() == 5 && heads.key_BJSW.dim() == 4, ShapeError, "causal_attention: query has shape ",
                   query.sizes(), ", key ", heads.key_BJSW.sizes(), "; expected [B, J, S, I, W] and [B, J, S, W]");
  SWITCHYARD_CHECK(query.size(3) >= 1 && query.size(4) >= 1, ShapeError, "causal_attention: query has shape ", query.sizes(),
                   "; expected [B, J, S, I, W] with at least one query head I of at least one number W");
  const std::vector<int64_t> expected = {query.size(0), query.size(1), query.size(2), query.size(4)};
  SWITCHYARD_CHECK(heads.key_BJSW.sizes() == c10::IntArrayRef(expected) &&
                       heads.value_BJSW.sizes() == c10::IntArrayRef(expected),
                   ShapeError, "causal_attention: key has shape ", heads.key_BJSW.sizes(), ", value ",
                   heads.value_BJSW.sizes(), "; expected ", c10::IntArrayRef(expected));
}

struct TileAttentionFunction : torch::autograd::Function<TileAttentionFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& query_BJSIW,
                            const at::Tensor& key_BJSW, const at::Tensor& value_BJSW) {
    const TileAttention result = tile_attention({query_BJSIW, key_BJSW, value_BJSW});
    context->save_for_backward({query_BJSIW, key_BJSW, value_BJSW, result.log_sum_BJSI});
    return result.out_TC;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    refuse_second_derivative("causal_attention", "causal_attention_reference()");
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const AttentionHeads result = tile_attention_backward({saved[0], saved[1], saved[2]}, saved[3], gradients[0]);
    return {result.query_BJSIW, result.key_BJSW, result.value_BJSW};
  }
};

}  // namespace

at::Tensor causal_attention_reference(const AttentionHeads& heads) {
  check_attention(heads);
  const at::Tensor& query = heads.query_BJSIW;
  const int64_t batch = query.size(0), kv_heads = query.size(1), positions = query.size(2), group = query.size(3);
  const int64_t width = query.size(4);
  const at::ScalarType type = query.scalar_type();
  const at::ScalarType wide = wide_type(type);
  const at::Tensor flat_query = query.reshape({batch * kv_heads, positions * group, width});
  const at::Tensor key = heads.key_BJSW.reshape({batch * kv_heads, positions, width});
  const at::Tensor value = heads.value_BJSW.reshape({batch * kv_heads, positions, width});
  const at::Tensor future_SS = at::ones({positions, positions}, query.options().dtype(at::kBool).requires_grad(false)).triu(1);
  const at::Tensor future =
      future_SS.unsqueeze(1).expand({positions, group, positions}).reshape({positions * group, positions});
  const at::Tensor scores = at::bmm(flat_query, key.transpose(1, 2)).to(wide);
  const at::Tensor weights = at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor out = at::bmm(weights.to(type), value).reshape({batch, kv_heads, positions, group * width});
  return out.transpose(1, 2).reshape({batch * positions, kv_heads * group * width});
}

at::Tensor causal_attention(const AttentionHeads& heads) {
  check_attention(heads);
  if (!heads.query_BJSIW.is_cpu()) return causal_attention_reference(heads);
  if (!has_tile_attention(heads)) return block_attention(heads);
  return TileAttentionFunction::apply(heads.query_BJSIW, heads.key_BJSW, heads.value_BJSW);
}

}  // namespace switchyard
