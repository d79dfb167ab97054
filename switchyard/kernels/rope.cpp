#include "switchyard/kernels/rope.hpp"

#include <ATen/Dispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/rms_norm.hpp"
#include "switchyard/kernels/row_blocks.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

void check_heads(const at::Tensor& qkv_TC, const at::Tensor& query_weight_W, const at::Tensor& key_weight_W,
                 const RopeTable& table, const HeadShape& shape) {
  SWITCHYARD_CHECK(qkv_TC.dim() == 2 && qkv_TC.size(0) == shape.batch * shape.positions &&
                       qkv_TC.size(1) == shape.qkv_width(),
                   ShapeError, "split_norm_rotate: qkv has shape ", qkv_TC.sizes(), "; expected [",
                   shape.batch * shape.positions, ", ", shape.qkv_width(), "]");
  SWITCHYARD_CHECK(shape.head_width % 2 == 0 && shape.head_width >= 2, ShapeError, "split_norm_rotate: head width ",
                   shape.head_width, "; expected an even number");
  SWITCHYARD_CHECK(table.cos_SP.size(0) >= shape.positions && table.cos_SP.size(1) == shape.head_width / 2, ShapeError,
                   "split_norm_rotate: the rotary table has shape ", table.cos_SP.sizes(), "; expected at least ",
                   shape.positions, " positions and ", shape.head_width / 2, " pairs");
  const at::ScalarType wide = wide_type(qkv_TC.scalar_type());
  for (const at::Tensor* weight : {&query_weight_W, &key_weight_W}) {
    SWITCHYARD_CHECK(weight->dim() == 1 && weight->size(0) == shape.head_width && weight->scalar_type() == wide, ShapeError,
                     "split_norm_rotate: a norm weight has shape ", weight->sizes(), " and type ", weight->scalar_type(),
                     "; expected [", shape.head_width, "] and ", wide);
  }
  SWITCHYARD_CHECK(table.cos_SP.scalar_type() == wide && table.sin_SP.sizes() == table.cos_SP.sizes() &&
                       table.sin_SP.scalar_type() == wide,
                   ShapeError, "split_norm_rotate: the rotary table is ", table.cos_SP.scalar_type(), "; expected ", wide);
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

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Rotation {
  HeadShape shape;
  RopeTable table;
  double epsilon = 0.0;
  double query_scale = 1.0;
};

// Where the heads of a token lie in the projection (token-major) and in the results (head-major).
struct HeadPlaces {
  const HeadShape& shape;

  [[nodiscard]] int64_t position(int64_t token) const { return token % shape.positions; }
  [[nodiscard]] int64_t query(int64_t token, int64_t j, int64_t i) const {
    return (key(token, j) / shape.head_width * shape.group + i) * shape.head_width;
  }
  [[nodiscard]] int64_t key(int64_t token, int64_t j) const {  // and value
    return ((token / shape.positions * shape.kv_heads + j) * shape.positions + position(token)) * shape.head_width;
  }
};

template <typename Value>
void rotate_forward(const Value* qkv, const WideOf<Value>* query_weight, const WideOf<Value>* key_weight,
                    const Rotation& rotation, Value* query, Value* key, Value* value) {
  using Wide = WideOf<Value>;
  const HeadShape& shape = rotation.shape;
  const HeadPlaces places{shape};
  const RowOps<Value>& ops = row_ops<Value>();
  const int64_t width = shape.head_width;
  const auto epsilon = static_cast<Wide>(rotation.epsilon);
  const auto scale = static_cast<Wide>(rotation.query_scale);
  for_each_row_block(shape.batch * shape.positions, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const Wide* cos = rotation.table.cos_SP.const_data_ptr<Wide>() + places.position(token) * width / 2;
      const Wide* sin = rotation.table.sin_SP.const_data_ptr<Wide>() + places.position(token) * width / 2;
      const Value* from = qkv + token * shape.qkv_width();
      for (int64_t j = 0; j < shape.kv_heads; ++j) {
        for (int64_t i = 0; i < shape.group; ++i, from += width) {
          ops.norm_rotate(from, query_weight, cos, sin, scale, query + places.query(token, j, i), width, epsilon);
        }
      }
      for (int64_t j = 0; j < shape.kv_heads; ++j, from += width) {
        ops.norm_rotate(from, key_weight, cos, sin, Wide(1), key + places.key(token, j), width, epsilon);
      }
      for (int64_t j = 0; j < shape.kv_heads; ++j, from += width) std::copy_n(from, width, value + places.key(token, j));
    }
  });
}

// Tensors as plain pointers, for the loop over tokens.
template <typename Value>
struct RotateGradient {
  const Value* qkv;
  const WideOf<Value>*query_weight, *key_weight;
  const Value *d_query, *d_key, *d_value;
  Value* d_qkv;
  WideOf<Value>* d_weights;  // [blocks, 2 W]: query, then key
};

template <typename Value>
void rotate_backward(const RotateGradient<Value>& g, const Rotation& rotation) {
  using Wide = WideOf<Value>;
  const HeadShape& shape = rotation.shape;
  const HeadPlaces places{shape};
  const RowOps<Value>& ops = row_ops<Value>();
  const int64_t width = shape.head_width;
  const auto epsilon = static_cast<Wide>(rotation.epsilon);
  const auto scale = static_cast<Wide>(rotation.query_scale);
  for_each_row_block(shape.batch * shape.positions, [&](int64_t block, int64_t begin, int64_t end) {
    std::vector<Wide> scratch(static_cast<size_t>(width));
    Wide* d_query_weight = g.d_weights + 2 * block * width;
    Wide* d_key_weight = d_query_weight + width;
    for (int64_t token = begin; token < end; ++token) {
      const Wide* cos = rotation.table.cos_SP.const_data_ptr<Wide>() + places.position(token) * width / 2;
      const Wide* sin = rotation.table.sin_SP.const_data_ptr<Wide>() + places.position(token) * width / 2;
      int64_t at = token * shape.qkv_width();
      for (int64_t j = 0; j < shape.kv_heads; ++j) {
        for (int64_t i = 0; i < shape.group; ++i, at += width) {
          ops.norm_rotate_backward(g.qkv + at, g.query_weight, cos, sin, scale, g.d_query + places.query(token, j, i),
                                   g.d_qkv + at, d_query_weight, scratch.data(), width, epsilon);
        }
      }
      for (int64_t j = 0; j < shape.kv_heads; ++j, at += width) {
        ops.norm_rotate_backward(g.qkv + at, g.key_weight, cos, sin, Wide(1), g.d_key + places.key(token, j), g.d_qkv + at,
                                 d_key_weight, scratch.data(), width, epsilon);
      }
      for (int64_t j = 0; j < shape.kv_heads; ++j, at += width) {
        std::copy_n(g.d_value + places.key(token, j), width, g.d_qkv + at);
      }
    }
  });
}

struct RotationHolder : torch::CustomClassHolder {
  explicit RotationHolder(Rotation held) : rotation(std::move(held)) {}
  Rotation rotation;
};

struct SplitFunction : torch::autograd::Function<SplitFunction> {
  static variable_list forward(AutogradContext* context, const at::Tensor& qkv_TC, const at::Tensor& given_query_weight_W,
                               const at::Tensor& given_key_weight_W, const Rotation& rotation) {
    const KernelScope profiled("split, norm, rotate");
    const at::Tensor qkv = qkv_TC.contiguous();
    const at::Tensor query_weight_W = given_query_weight_W.contiguous(), key_weight_W = given_key_weight_W.contiguous();
    const auto [batch, positions, kv_heads, group, width] = rotation.shape;
    at::Tensor query = at::empty({batch, kv_heads, positions, group, width}, qkv.options());
    at::Tensor key = at::empty({batch, kv_heads, positions, width}, qkv.options());
    at::Tensor value = at::empty_like(key);
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, qkv.scalar_type(), "split_norm_rotate", [&] {
      using Wide = WideOf<scalar_t>;
      rotate_forward(qkv.const_data_ptr<scalar_t>(), query_weight_W.const_data_ptr<Wide>(), key_weight_W.const_data_ptr<Wide>(),
                     rotation, query.mutable_data_ptr<scalar_t>(), key.mutable_data_ptr<scalar_t>(),
                     value.mutable_data_ptr<scalar_t>());
    });
    context->save_for_backward({qkv, query_weight_W, key_weight_W});
    context->saved_data["rotation"] = c10::IValue::make_capsule(c10::make_intrusive<RotationHolder>(rotation));
    return {query, key, value};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("split_norm_rotate", "split_norm_rotate_reference()");
    const KernelScope profiled("split, norm, rotate backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &qkv = saved[0], &query_weight_W = saved[1], &key_weight_W = saved[2];
    const auto holder = c10::static_intrusive_pointer_cast<RotationHolder>(context->saved_data["rotation"].toCapsule());
    const HeadShape& shape = holder->rotation.shape;
    for (at::Tensor& gradient : gradients) gradient = gradient.contiguous();
    at::Tensor d_qkv = at::empty_like(qkv);
    at::Tensor d_weights = at::zeros({num_row_blocks(qkv.size(0)), 2, shape.head_width}, query_weight_W.options());
    AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, qkv.scalar_type(), "split_norm_rotate_backward", [&] {
      using Wide = WideOf<scalar_t>;
      rotate_backward<scalar_t>(
          {qkv.const_data_ptr<scalar_t>(), query_weight_W.const_data_ptr<Wide>(), key_weight_W.const_data_ptr<Wide>(),
           gradients[0].const_data_ptr<scalar_t>(), gradients[1].const_data_ptr<scalar_t>(),
           gradients[2].const_data_ptr<scalar_t>(), d_qkv.mutable_data_ptr<scalar_t>(), d_weights.mutable_data_ptr<Wide>()},
          holder->rotation);
    });
    const at::Tensor d_weight_2W = d_weights.sum(0);
    return {d_qkv, d_weight_2W.select(0, 0), d_weight_2W.select(0, 1), at::Tensor()};
  }
};

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
  check_heads(qkv_TC, query_weight_W, key_weight_W, table, shape);
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
  check_heads(qkv_TC, query_weight_W, key_weight_W, table, shape);
  if (!qkv_TC.is_cpu()) {
    return split_norm_rotate_reference(qkv_TC, query_weight_W, key_weight_W, table, shape, epsilon, query_scale);
  }
  const Rotation rotation{shape, {table.cos_SP.contiguous(), table.sin_SP.contiguous()}, epsilon, query_scale};
  const variable_list heads = SplitFunction::apply(qkv_TC, query_weight_W, key_weight_W, rotation);
  return {heads[0], heads[1], heads[2]};
}

}  // namespace switchyard
