#include "switchyard/kernels/attention.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/triu.h>

#include <limits>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_attention(const AttentionHeads& heads) {
  const at::Tensor& query = heads.query_BJSIW;
  SWITCHYARD_CHECK(query.dim() == 5 && heads.key_BJSW.dim() == 4, ShapeError, "causal_attention: query has shape ",
                   query.sizes(), ", key ", heads.key_BJSW.sizes(), "; expected [B, J, S, I, W] and [B, J, S, W]");
  const std::vector<int64_t> expected = {query.size(0), query.size(1), query.size(2), query.size(4)};
  SWITCHYARD_CHECK(heads.key_BJSW.sizes() == c10::IntArrayRef(expected) &&
                       heads.value_BJSW.sizes() == c10::IntArrayRef(expected),
                   ShapeError, "causal_attention: key has shape ", heads.key_BJSW.sizes(), ", value ",
                   heads.value_BJSW.sizes(), "; expected ", c10::IntArrayRef(expected));
}

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
  const at::Tensor future_SS = at::ones({positions, positions}, at::TensorOptions(at::kBool)).triu(1);
  const at::Tensor future = future_SS.unsqueeze(1).expand({positions, group, positions}).reshape({positions * group, positions});
  const at::Tensor scores = at::bmm(flat_query, key.transpose(1, 2)).to(wide);
  const at::Tensor weights = at::softmax(scores.masked_fill(future, -std::numeric_limits<double>::infinity()), -1);
  const at::Tensor out = at::bmm(weights.to(type), value).reshape({batch, kv_heads, positions, group * width});
  return out.transpose(1, 2).reshape({batch * positions, kv_heads * group * width});
}

at::Tensor causal_attention(const AttentionHeads& heads) { return causal_attention_reference(heads); }

}  // namespace switchyard
