#include "switchyard/kernels/block_attention.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/accumulate.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/parallel_operations.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Positions of a block of queries: small enough that little of the future is multiplied, large enough for the GEMM.
constexpr int64_t kBlock = 128;

// The heads as batches of matrices, N = B * J; a row of the queries is a (position, head of the group) pair.
struct Flat {
  at::Tensor query;  // [N, S * I, W]
  at::Tensor key;    // [N, S, W]
  at::Tensor value;  // [N, S, W]
  int64_t batch, kv_heads, positions, group, width;

  Flat(const at::Tensor& query_BJSIW, const at::Tensor& key_BJSW, const at::Tensor& value_BJSW)
      : batch(query_BJSIW.size(0)), kv_heads(query_BJSIW.size(1)), positions(query_BJSIW.size(2)),
        group(query_BJSIW.size(3)), width(query_BJSIW.size(4)) {
    query = query_BJSIW.reshape({batch * kv_heads, positions * group, width});
    key = key_BJSW.reshape({batch * kv_heads, positions, width});
    value = value_BJSW.reshape({batch * kv_heads, positions, width});
  }

  // A block of queries of [B, S, J * I * W], the layout of the result, as [B, J, block, I, W].
  [[nodiscard]] at::Tensor block_of(const at::Tensor& out_TC, int64_t begin, int64_t size) const {
    return out_TC.view({batch, positions, kv_heads, group, width}).narrow(1, begin, size).transpose(1, 2);
  }
};

template <typename Body>
void for_each_block(int64_t positions, const Body& body) {
  for (int64_t begin = 0; begin < positions; begin += kBlock) body(begin, std::min(kBlock, positions - begin));
}

// Scores of the heads that are worked on together: few enough to stay in cache between the products and the softmax, enough that
// calls are few.
constexpr int64_t kBytesTogether = 4 << 20;

// Each thread takes heads of its own through all steps: threads that share a product of this size wait for each other longer than
// it takes.
template <typename Body>
void for_each_head_group(const Flat& flat, int64_t rows, int64_t seen, const Body& body) {
  const int64_t bytes = rows * seen * static_cast<int64_t>(flat.query.element_size());
  parallel_operations(flat.query.size(0), [&](int64_t first, int64_t last) {
    const int64_t together = std::clamp<int64_t>(kBytesTogether / bytes, 1, last - first);
    for (int64_t head = first; head < last; head += together) body(head, std::min(together, last - head));
  });
}

// Runs body(ops, scratch, row number, positions it sees) on each row of a block's scores, [N, size * I, begin + size].
template <typename Value, typename Body>
void for_each_score_row(const at::Tensor& scores, int64_t begin, int64_t group, const Body& body) {
  constexpr int64_t kRowsPerTask = 16;
  const RowOps<Value>& ops = row_ops<Value>();
  const int64_t rows_per_head = scores.size(1);
  at::parallel_for(0, scores.size(0) * rows_per_head, kRowsPerTask, [&](int64_t first, int64_t last) {
    std::vector<WideOf<Value>> scratch(static_cast<size_t>(scores.size(2)));
    for (int64_t row = first; row < last; ++row) body(ops, scratch.data(), row, begin + row % rows_per_head / group + 1);
  });
}

// In place. No mask is needed: a row's softmax ends at the position itself.
void softmax_block(const at::Tensor& scores, int64_t begin, int64_t group) {
  const KernelScope profiled("attention softmax");
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, scores.scalar_type(), "causal_softmax", [&] {
    using Wide = WideOf<scalar_t>;
    scalar_t* data = scores.mutable_data_ptr<scalar_t>();
    const int64_t width = scores.size(2);
    for_each_score_row<scalar_t>(
        scores, begin, group, [&](const RowOps<scalar_t>& ops, Wide* scratch, int64_t row, int64_t visible) {
          ops.softmax(data + row * width, scratch, visible, width);
        });
  });
}

// In place on d_probs.
void softmax_block_backward(const at::Tensor& probs, const at::Tensor& d_probs, int64_t begin, int64_t group) {
  const KernelScope profiled("attention softmax backward");
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, probs.scalar_type(), "causal_softmax_backward", [&] {
    using Wide = WideOf<scalar_t>;
    const scalar_t* given = probs.const_data_ptr<scalar_t>();
    scalar_t* data = d_probs.mutable_data_ptr<scalar_t>();
    const int64_t width = probs.size(2);
    for_each_score_row<scalar_t>(d_probs, begin, group,
                                 [&](const RowOps<scalar_t>& ops, Wide*, int64_t row, int64_t visible) {
                                   ops.softmax_backward(given + row * width, data + row * width, visible, width);
                                 });
  });
}

// Keeps the probabilities of each block: S * S / 2 of them a head, in the compute type.
struct BlockAttentionFunction : torch::autograd::Function<BlockAttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query_BJSIW, const at::Tensor& key_BJSW,
                            const at::Tensor& value_BJSW) {
    const Flat flat(query_BJSIW, key_BJSW, value_BJSW);
    const int64_t heads = flat.query.size(0);
    at::Tensor out_TC = at::empty({flat.batch * flat.positions, flat.kv_heads * flat.group * flat.width}, flat.query.options());
    variable_list saved = {query_BJSIW, key_BJSW, value_BJSW};
    for_each_block(flat.positions, [&](int64_t begin, int64_t size) {
      const int64_t rows = size * flat.group, seen = begin + size;
      const at::Tensor query = flat.query.narrow(1, begin * flat.group, rows);
      const at::Tensor key = flat.key.narrow(1, 0, seen).transpose(1, 2);
      const at::Tensor value = flat.value.narrow(1, 0, seen);
      const at::Tensor probs = at::empty({heads, rows, seen}, query.options());
      const at::Tensor out = at::empty({heads, rows, flat.width}, query.options());
      for_each_head_group(flat, rows, seen, [&](int64_t head, int64_t count) {
        at::Tensor some_probs = probs.narrow(0, head, count), some_out = out.narrow(0, head, count);
        at::bmm_out(some_probs, query.narrow(0, head, count), key.narrow(0, head, count));
        softmax_block(some_probs, begin, flat.group);
        at::bmm_out(some_out, some_probs, value.narrow(0, head, count));
      });
      flat.block_of(out_TC, begin, size).copy_(out.view({flat.batch, flat.kv_heads, size, flat.group, flat.width}));
      saved.push_back(probs);
    });
    context->save_for_backward(saved);
    return out_TC;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("causal_attention", "causal_attention_reference()");
    const variable_list saved = context->get_saved_variables();
    const Flat flat(saved[0], saved[1], saved[2]);
    const at::Tensor d_out_TC = gradients[0].contiguous();
    // Keys and values are in several blocks; their gradients add up in fp32. They are kept as [N, W, S]: to transpose the few
    // columns of a head is cheap, to multiply by transposed probabilities is not.
    const at::TensorOptions wide = flat.query.options().dtype(wide_type(flat.query.scalar_type()));
    at::Tensor d_query = at::empty_like(flat.query);
    at::Tensor d_key = at::zeros({flat.query.size(0), flat.width, flat.positions}, wide);
    at::Tensor d_value = at::zeros_like(d_key);
    size_t block = 3;
    for_each_block(flat.positions, [&](int64_t begin, int64_t size) {
      const int64_t rows = size * flat.group, seen = begin + size;
      const at::Tensor& all_probs = saved[block++];
      const at::Tensor all_queries = flat.query.narrow(1, begin * flat.group, rows);
      const at::Tensor all_d_out = flat.block_of(d_out_TC, begin, size).reshape({-1, rows, flat.width});
      for_each_head_group(flat, rows, seen, [&](int64_t head, int64_t count) {
        const at::Tensor probs = all_probs.narrow(0, head, count);
        const at::Tensor query = all_queries.narrow(0, head, count);
        const at::Tensor d_out = all_d_out.narrow(0, head, count);
        const auto add_to = [&](const at::Tensor& sum, const at::Tensor& left, const at::Tensor& right) {
          accumulate(sum.narrow(0, head, count).narrow(2, 0, seen), at::bmm(left.transpose(1, 2).contiguous(), right));
        };
        add_to(d_value, d_out, probs);
        const at::Tensor d_scores = at::bmm(d_out, flat.value.narrow(0, head, count).narrow(1, 0, seen).transpose(1, 2));
        softmax_block_backward(probs, d_scores, begin, flat.group);
        d_query.narrow(0, head, count)
            .narrow(1, begin * flat.group, rows)
            .copy_(at::bmm(d_scores, flat.key.narrow(0, head, count).narrow(1, 0, seen)));
        add_to(d_key, query, d_scores);
      });
    });
    const auto as_given = [](const at::Tensor& sum, const at::Tensor& like) {
      return sum.to(like.scalar_type()).transpose(1, 2).contiguous().view(like.sizes());
    };
    return {d_query.view(saved[0].sizes()), as_given(d_key, saved[1]), as_given(d_value, saved[2])};
  }
};

}  // namespace

at::Tensor block_attention(const AttentionHeads& heads) {
  return BlockAttentionFunction::apply(heads.query_BJSIW, heads.key_BJSW, heads.value_BJSW);
}

}  // namespace switchyard
