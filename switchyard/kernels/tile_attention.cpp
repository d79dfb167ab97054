#include "switchyard/kernels/tile_attention.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/scratch.hpp"
#include "switchyard/kernels/score_ops.hpp"
#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {
namespace {

using c10::BFloat16;

// Letters as in kernels/rope.hpp. A row is a (position, query head) pair of one key head.
struct Sizes {
  static constexpr int64_t kPad = 16;  // behind a row of a matrix, so that its leading dimension is no power of two

  int64_t batch, kv_heads, positions, group, width;
  int64_t keys;             // positions, filled up with zeros
  int64_t leading;          // of matrices with a column for each key
  int64_t block_positions;  // of a block of queries
  int64_t block_rows;       // its rows, made even

  explicit Sizes(const at::Tensor& query_BJSIW)
      : batch(query_BJSIW.size(0)), kv_heads(query_BJSIW.size(1)), positions(query_BJSIW.size(2)), group(query_BJSIW.size(3)),
        width(query_BJSIW.size(4)), keys(rounded_up(positions, kScoreLanes)), leading(keys + kPad) {
    // 64 rows keep the matrix unit busy; a longer sequence takes fewer, so that a block's scores stay in a megabyte.
    constexpr int64_t kMostRows = 64, kLeastRows = 16, kCache = 1 << 20;
    const int64_t bytes_of_score = query_BJSIW.scalar_type() == at::kFloat ? 8 : 14;  // of a score and its gradient, backward
    const int64_t rows = std::clamp(kCache / (bytes_of_score * keys), kLeastRows, kMostRows);
    block_positions = std::clamp<int64_t>(rows / group, 1, positions);
    block_rows = rounded_up(block_positions * group, 2);
  }
  [[nodiscard]] int64_t heads() const { return batch * kv_heads; }
  // Where a position's queries of one key head lie in [B * S, H * W].
  [[nodiscard]] int64_t out_offset(int64_t head, int64_t position) const {
    return ((head / kv_heads * positions + position) * kv_heads + head % kv_heads) * group * width;
  }
};

// A block of queries of one head and what it sees.
struct Block {
  int64_t begin, rows, keys;  // first position; rows; keys, filled up
  [[nodiscard]] int64_t visible(int64_t row, int64_t group) const { return begin + row / group + 1; }
};

template <typename Body>
void for_each_block(const Sizes& sizes, const Body& body) {
  for (int64_t begin = 0; begin < sizes.positions; begin += sizes.block_positions) {
    const int64_t positions = std::min(sizes.block_positions, sizes.positions - begin);
    body(Block{begin, positions * sizes.group, rounded_up(begin + positions, kScoreLanes)});
  }
}

template <typename Value>
struct HeadPointers {
  const Value *query, *key, *value;
  HeadPointers(const AttentionHeads& heads, const Sizes& s, int64_t head)
      : query(heads.query_BJSIW.const_data_ptr<Value>() + head * s.positions * s.group * s.width),
        key(heads.key_BJSW.const_data_ptr<Value>() + head * s.positions * s.width),
        value(heads.value_BJSW.const_data_ptr<Value>() + head * s.positions * s.width) {}
};

AttentionHeads contiguous(const AttentionHeads& heads) {
  return {heads.query_BJSIW.contiguous(), heads.key_BJSW.contiguous(), heads.value_BJSW.contiguous()};
}

// Whole heads to each thread: a Task has the scratch of one and works on one head at a time.
template <typename Task, typename... Tensors>
void for_each_head(const Sizes& sizes, const Tensors&... tensors) {
  at::parallel_for(0, sizes.heads(), 1, [&](int64_t first, int64_t last) {
    const c10::NoGradGuard no_grad;  // of this thread
    const TileProducts products;
    Task task(sizes);
    for (int64_t head = first; head < last; ++head) task.run(head, tensors...);
  });
}

// fp32 numbers go into the next product where the last one put them, bf16 ones are rounded into a place of their own.
float* rounded(Scratch<float>& /*numbers*/, float* wide, int64_t /*count*/) { return wide; }
BFloat16* rounded(Scratch<BFloat16>& numbers, const float* /*wide*/, int64_t count) { return numbers.take(count); }

template <typename Value>
class ForwardTask {
 public:
  explicit ForwardTask(const Sizes& sizes)
      : s_(sizes), numbers_((2 * s_.width + s_.block_rows) * s_.leading), floats_(s_.block_rows * (s_.leading + s_.width + 1)) {}

  void run(int64_t head, const AttentionHeads& heads, Value* out, float* log_sums) {
    const HeadPointers<Value> from(heads, s_, head);
    layout_.transpose_as_right({from.key, s_.positions, s_.width, s_.width}, key_t_);
    layout_.as_right({from.value, s_.positions, s_.width, s_.width}, value_);
    for_each_block(s_, [&](const Block& block) {
      const int64_t first_row = block.begin * s_.group;
      tile_product({from.query + first_row * s_.width, block.rows, s_.width, s_.width}, key_t_,
                   {scores_, block.rows, block.keys, s_.leading}, TileSum::Overwrite);
      for (int64_t row = 0; row < block.rows; ++row) {
        const ExpSum sum = ops_.exponentials(scores_ + row * s_.leading, exps_ + row * s_.leading,
                                             block.visible(row, s_.group), block.keys);
        inverse_[row] = sum.inverse_sum;
        log_sums[head * s_.positions * s_.group + first_row + row] = sum.log_sum;
      }
      tile_product({exps_, block.rows, block.keys, s_.leading}, value_, {sums_, block.rows, s_.width, s_.width},
                   TileSum::Overwrite);
      for (int64_t row = 0; row < block.rows; ++row) {
        Value* const to = out + s_.out_offset(head, block.begin + row / s_.group) + row % s_.group * s_.width;
        ops_.scale(sums_ + row * s_.width, inverse_[row], to, s_.width);
      }
    });
  }

 private:
  const Sizes& s_;
  const ScoreOps<Value>& ops_ = score_ops<Value>();
  const LayoutOps<Value>& layout_ = layout_ops<Value>();
  Scratch<Value> numbers_;
  Scratch<float> floats_;
  RightMatrix<Value> key_t_{numbers_.take(s_.leading * s_.width), s_.width, s_.keys, s_.leading};
  RightMatrix<Value> value_{numbers_.take(s_.keys * s_.width), s_.keys, s_.width, s_.width};
  float* scores_ = floats_.take(s_.block_rows * s_.leading);
  Value* exps_ = rounded(numbers_, scores_, s_.block_rows * s_.leading);
  float* sums_ = floats_.take(s_.block_rows * s_.width);
  float* inverse_ = floats_.take(s_.block_rows);
};

// With P the probabilities and G the gradient of the scores, both [row, key]: gradients of values P^T d_out, of queries G K, of keys
// G^T Q. The sums over rows are kept as [W, S] in fp32: to transpose the few columns of a head is cheap, P and G are not.
template <typename Value>
class BackwardTask {
 public:
  explicit BackwardTask(const Sizes& sizes)
      : s_(sizes),
        numbers_((3 * s_.width + 3 * s_.block_rows) * s_.leading + 3 * (s_.block_rows + Sizes::kPad) * s_.width),
        floats_((2 * s_.width + 2 * s_.block_rows) * s_.leading + s_.block_rows * s_.width) {}

  void run(int64_t head, const AttentionHeads& heads, const float* log_sums, const Value* d_out,
           const AttentionHeads& gradients) {
    const HeadPointers<Value> from(heads, s_, head);
    layout_.transpose_as_right({from.key, s_.positions, s_.width, s_.width}, key_t_);
    layout_.transpose_as_right({from.value, s_.positions, s_.width, s_.width}, value_t_);
    layout_.as_right({from.key, s_.positions, s_.width, s_.width}, key_);
    std::fill_n(d_key_t_, s_.width * s_.leading, 0.0F);
    std::fill_n(d_value_t_, s_.width * s_.leading, 0.0F);
    Value* const d_query = gradients.query_BJSIW.mutable_data_ptr<Value>() + head * s_.positions * s_.group * s_.width;
    for_each_block(s_, [&](const Block& block) {
      const int64_t first_row = block.begin * s_.group;
      const MatrixView<const Value> query{from.query + first_row * s_.width, block.rows, s_.width, s_.width};
      for (int64_t row = 0; row < block.rows; row += s_.group) {
        std::copy_n(d_out + s_.out_offset(head, block.begin + row / s_.group), s_.group * s_.width, d_out_ + row * s_.width);
      }
      add_block(block, query, log_sums + head * s_.positions * s_.group + first_row);
      for (int64_t row = 0; row < block.rows; ++row) {
        ops_.scale(d_query_ + row * s_.width, 1.0F, d_query + (first_row + row) * s_.width, s_.width);
      }
    });
    store_transposed(d_key_t_, gradients.key_BJSW.mutable_data_ptr<Value>() + head * s_.positions * s_.width);
    store_transposed(d_value_t_, gradients.value_BJSW.mutable_data_ptr<Value>() + head * s_.positions * s_.width);
  }

 private:
  void add_block(const Block& block, const MatrixView<const Value>& query, const float* log_sums) {
    const int64_t rows = rounded_up(block.rows, 2), leading = s_.leading, columns = s_.block_rows + Sizes::kPad;
    const MatrixView<const Value> d_out{d_out_, block.rows, s_.width, s_.width};
    tile_product(query, key_t_, {scores_, block.rows, block.keys, leading}, TileSum::Overwrite);
    tile_product(d_out, value_t_, {d_probs_, block.rows, block.keys, leading}, TileSum::Overwrite);
    for (int64_t row = 0; row < rows; row += 2) add_rows(block, row, log_sums);
    layout_.transpose(d_out, {d_out_t_, s_.width, rows, columns});
    layout_.transpose(query, {query_t_, s_.width, rows, columns});
    tile_product({d_out_t_, s_.width, rows, columns}, {probs_, rows, block.keys, leading},
                 {d_value_t_, s_.width, block.keys, leading}, TileSum::Add);
    tile_product({query_t_, s_.width, rows, columns}, {d_scores_right_, rows, block.keys, leading},
                 {d_key_t_, s_.width, block.keys, leading}, TileSum::Add);
    tile_product({d_scores_, block.rows, block.keys, leading}, key_, {d_query_, block.rows, s_.width, s_.width},
                 TileSum::Overwrite);
  }

  void add_rows(const Block& block, int64_t row, const float* log_sums) {
    const int64_t leading = s_.leading;
    const auto score_row = [&](int64_t r) {
      const bool there = r < block.rows;
      return ScoreRow{scores_ + r * leading, d_probs_ + r * leading, there ? log_sums[r] : 0.0F,
                      there ? block.visible(r, s_.group) : 0};
    };
    if constexpr (kStaysWide<Value>) {
      ops_.gradient({score_row(row), score_row(row + 1)}, block.keys);
    } else {
      ops_.gradient({score_row(row), score_row(row + 1), d_scores_ + row * leading, d_scores_ + (row + 1) * leading,
                     probs_ + row * leading, d_scores_right_ + row * leading},
                    block.keys);
    }
  }

  void store_transposed(const float* from_WS, Value* to_SW) const {
    if constexpr (kStaysWide<Value>) {
      layout_.transpose({from_WS, s_.width, s_.positions, s_.leading}, {to_SW, s_.positions, s_.width, s_.width});
    } else {
      for (int64_t position = 0; position < s_.positions; ++position) {
        for (int64_t w = 0; w < s_.width; ++w) to_SW[position * s_.width + w] = Value(from_WS[w * s_.leading + position]);
      }
    }
  }

  const Sizes& s_;
  const ScoreOps<Value>& ops_ = score_ops<Value>();
  const LayoutOps<Value>& layout_ = layout_ops<Value>();
  Scratch<Value> numbers_;
  Scratch<float> floats_;
  RightMatrix<Value> key_t_{numbers_.take(s_.leading * s_.width), s_.width, s_.keys, s_.leading};
  RightMatrix<Value> value_t_{numbers_.take(s_.leading * s_.width), s_.width, s_.keys, s_.leading};
  RightMatrix<Value> key_{numbers_.take(s_.keys * s_.width), s_.keys, s_.width, s_.width};
  Value* d_out_ = numbers_.take(s_.block_rows * s_.width);
  Value* d_out_t_ = numbers_.take((s_.block_rows + Sizes::kPad) * s_.width);
  Value* query_t_ = numbers_.take((s_.block_rows + Sizes::kPad) * s_.width);
  float* scores_ = floats_.take(s_.block_rows * s_.leading);
  float* d_probs_ = floats_.take(s_.block_rows * s_.leading);
  float* d_key_t_ = floats_.take(s_.leading * s_.width);
  float* d_value_t_ = floats_.take(s_.leading * s_.width);
  float* d_query_ = floats_.take(s_.block_rows * s_.width);
  Value* probs_ = rounded(numbers_, scores_, s_.block_rows * s_.leading);
  Value* d_scores_ = rounded(numbers_, d_probs_, s_.block_rows * s_.leading);        // as a left-hand matrix
  Value* d_scores_right_ = rounded(numbers_, d_probs_, s_.block_rows * s_.leading);  // as a right-hand one
};

}  // namespace

bool has_tile_attention(const AttentionHeads& heads) {
  const at::Tensor& query = heads.query_BJSIW;
  const bool fits = query.scalar_type() == at::kFloat || query.size(4) % 2 == 0;
  return query.is_cpu() && fits && query.numel() > 0 && has_tile_products(query.scalar_type());
}

TileAttention tile_attention(const AttentionHeads& given) {
  const KernelScope profiled("attention");
  const AttentionHeads heads = contiguous(given);
  const Sizes sizes(heads.query_BJSIW);
  TileAttention result;
  result.out_TC = at::empty({sizes.batch * sizes.positions, sizes.kv_heads * sizes.group * sizes.width},
                            heads.query_BJSIW.options());
  result.log_sum_BJSI = at::empty({sizes.batch, sizes.kv_heads, sizes.positions, sizes.group}, at::kFloat);
  for_tile_type(heads.query_BJSIW.scalar_type(), [&](auto number) {
    using Value = decltype(number);
    for_each_head<ForwardTask<Value>>(sizes, heads, result.out_TC.mutable_data_ptr<Value>(),
                                      result.log_sum_BJSI.mutable_data_ptr<float>());
  });
  return result;
}

AttentionHeads tile_attention_backward(const AttentionHeads& given, const at::Tensor& log_sum_BJSI,
                                       const at::Tensor& d_out_TC) {
  const KernelScope profiled("attention backward");
  const AttentionHeads heads = contiguous(given);
  const at::Tensor d_out = d_out_TC.contiguous();
  const AttentionHeads gradients = {at::empty_like(heads.query_BJSIW), at::empty_like(heads.key_BJSW),
                                    at::empty_like(heads.value_BJSW)};
  for_tile_type(heads.query_BJSIW.scalar_type(), [&](auto number) {
    using Value = decltype(number);
    for_each_head<BackwardTask<Value>>(Sizes(heads.query_BJSIW), heads, log_sum_BJSI.const_data_ptr<float>(),
                                       d_out.const_data_ptr<Value>(), gradients);
  });
  return gradients;
}

}  // namespace switchyard
