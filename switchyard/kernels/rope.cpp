#include "switchyard/kernels/rope.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_heads(const at::Tensor& qkv_TC, const RopeTable& table, const HeadShape& shape) {
  SWITCHYARD_CHECK(qkv_TC.dim() == 2 && qkv_TC.size(0) == shape.batch * shape.positions &&
                       qkv_TC.size(1) == shape.qkv_width(),
                   ShapeError, "split_norm_rotate: qkv has shape ", qkv_TC.sizes(), "; expected [",
                   shape.batch * shape.positions, ", ", shape.qkv_width(), "]");
  SWITCHYARD_CHECK(shape.head_width % 2 == 0 && shape.head_width >= 2, ShapeError, "split_norm_rotate: head width ",
                   shape.head_width, "; expected an even number");
  SWITCHYARD_CHECK(table.cos_SP.size(0) >= shape.positions && table.cos_SP.size(1) == shape.head_width / 2, ShapeError,
                   "split_norm_rotate: the rotary table has shape ", table.cos_SP.sizes(), "; expected at least ",
                   shape.positions, " positions and ", shape.head_width / 2, " pairs");
}

// x [B, S, heads, W]
at::Tensor rotate(const at::Tensor& x, const RopeTable& table, int64_t positions) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor cos = table.cos_SP.narrow(0, 0, positions).unsqueeze(1);
  const at::Tensor sin = table.sin_SP.narrow(0, 0, positions).unsqueeze(1);
  const at::Tensor first = x.narrow(-1, 0, half);
  const at::Tensor second = x.narrow(-1, half, half);
  return at::cat({first.mul(cos).sub(second.mul(sin)), second.mul(cos).add(first.mul(sin))}, -1);
}

}  // namespace

RopeTable make_rope_table(int64_t positions, int64_t head_width, double theta, at::ScalarType type) {
  SWITCHYARD_CHECK(positions >= 1 && head_width >= 2 && head_width % 2 == 0 && theta > 0.0, ShapeError,
                   "rotary table for ", positions, " positions, head width ", head_width, ", theta ", theta,
                   "; expected at least 1 position, an even width and theta > 0");
  const int64_t half = head_width / 2;
  RopeTable table{at::empty({positions, half}, at::kDouble), at::empty({positions, half}, at::kDouble)};
  double* cos = table.cos_SP.mutable_data_ptr<double>();
  double* sin = table.sin_SP.mutable_data_ptr<double>();
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t pair = 0; pair < half; ++pair) {
      const double frequency = std::pow(theta, -2.0 * static_cast<double>(pair) / static_cast<double>(head_width));
      const double angle = static_cast<double>(position) * frequency;
      *cos++ = std::cos(angle);
      *sin++ = std::sin(angle);
    }
  }
  return {table.cos_SP.to(type), table.sin_SP.to(type)};
}

AttentionHeads split_norm_rotate_reference(const at::Tensor& qkv_TC, const at::Tensor& query_weight_W,
                                           const at::Tensor& key_weight_W, const RopeTable& table,
                                           const HeadShape& shape, double epsilon, double query_scale) {
  check_heads(qkv_TC, table, shape);
  const at::ScalarType type = qkv_TC.scalar_type();
  const at::ScalarType wide = wide_type(type);
  const auto [batch, positions, kv_heads, group, width] = shape;
  const at::Tensor query = qkv_TC.narrow(1, 0, shape.query_width()).reshape({batch, positions, kv_heads * group, width});
  const at::Tensor key = qkv_TC.narrow(1, shape.query_width(), shape.kv_width()).reshape({batch, positions, kv_heads, width});
  const at::Tensor value = qkv_TC.narrow(1, shape.query_width() + shape.kv_width(), shape.kv_width())
                               .reshape({batch, positions, kv_heads, width});
  const at::Tensor turned_query =
      rotate(rms_norm_reference(query.to(wide), query_weight_W, epsilon), table, positions).mul(query_scale);
  const at::Tensor turned_key = rotate(rms_norm_reference(key.to(wide), key_weight_W, epsilon), table, positions);
  AttentionHeads heads;
  heads.query_BJSIW = turned_query.to(type).reshape({batch, positions, kv_heads, group, width}).transpose(1, 2).contiguous();
  heads.key_BJSW = turned_key.to(type).transpose(1, 2).contiguous();
  heads.value_BJSW = value.transpose(1, 2).contiguous();
  return heads;
}

AttentionHeads split_norm_rotate(const at::Tensor& qkv_TC, const at::Tensor& query_weight_W,
                                 const at::Tensor& key_weight_W, const RopeTable& table, const HeadShape& shape,
                                 double epsilon, double query_scale) {
  return split_norm_rotate_reference(qkv_TC, query_weight_W, key_weight_W, table, shape, epsilon, query_scale);
}

}  // namespace switchyard
