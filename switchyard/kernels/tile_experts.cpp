#include "switchyard/kernels/tile_experts.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/grouped_gemm.hpp"
#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/scratch.hpp"
#include "switchyard/kernels/tile_panels.hpp"

namespace switchyard {
namespace {

// Slots of a group that are worked on together: their rows and gradients stay in the second-level cache.
constexpr int64_t kChunk = 256;

// What the groups share.
template <typename Value>
struct Expert {
  int64_t width, expert_width;
  const Value *gate_up, *down;  // of expert 0
  const int64_t* tokens;

  Expert(const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF, const at::Tensor& token_A)
      : width(down_EDF.size(1)), expert_width(down_EDF.size(2)), gate_up(gate_up_EFD.const_data_ptr<Value>()),
        down(down_EDF.const_data_ptr<Value>()), tokens(token_A.const_data_ptr<int64_t>()) {}

  [[nodiscard]] int64_t size() const { return 2 * expert_width * width; }  // of gate_up; down is half of it
  /// Of the second level, which is 1 or 2 MB in what we measured.
  [[nodiscard]] bool in_cache() const { return size() * 3 / 2 * static_cast<int64_t>(sizeof(Value)) <= (1 << 20); }
  [[nodiscard]] MatrixView<const Value> gate_up_of(int64_t expert) const {
    return {gate_up + expert * size(), 2 * expert_width, width, width};
  }
  [[nodiscard]] MatrixView<const Value> down_of(int64_t expert) const {
    return {down + expert * size() / 2, width, expert_width, expert_width};
  }
};

/// Rows that products of `count` rows are made with. fp32 numbers are dear, so few are not filled up to a unit.
template <typename Value>
[[nodiscard]] int64_t filled_rows(int64_t count) {
  return rounded_up(count, kStaysWide<Value> && count < kRowUnit ? kRowUnit / 4 : kRowUnit);
}

// Rows of a chunk, with zeros behind them up to those that are filled.
template <typename Value>
class Rows {
 public:
  Rows(Scratch<Value>& scratch, int64_t width) : data_(scratch.take(numbers(width))), width_(width) {}
  [[nodiscard]] static int64_t numbers(int64_t width) { return kChunk * leading(width); }

  [[nodiscard]] Value* row(int64_t i) const { return data_ + i * leading(width_); }
  [[nodiscard]] MatrixView<const Value> first(int64_t count) const { return {data_, count, width_, leading(width_)}; }
  [[nodiscard]] MatrixView<Value> writable(int64_t count) const { return {data_, count, width_, leading(width_)}; }

  void gather(const Value* from_TD, const int64_t* tokens, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) std::copy_n(from_TD + tokens[i] * width_, width_, row(i));
    clear_behind(count);
  }
  void clear_behind(int64_t count) const {
    for (int64_t i = count; i < filled_rows<Value>(count); ++i) std::fill_n(row(i), width_, Value(0));
  }

 private:
  [[nodiscard]] static int64_t leading(int64_t width) { return width + kPad; }
  Value* data_;
  int64_t width_;
};

/// body(first slot, slots, rows with those that are filled)
template <typename Value, typename Body>
void for_each_chunk(int64_t begin, int64_t size, const Body& body) {
  for (int64_t done = 0; done < size; done += kChunk) {
    const int64_t count = std::min(kChunk, size - done);
    body(begin + done, count, filled_rows<Value>(count));
  }
}

// Where the weights stay in cache they are the ones to lay out; else whichever are fewer numbers, they or the rows in and out.
template <typename Value>
bool lays_out_rows(const Expert<Value>& of, int64_t size) {
  const int64_t of_rows = size * (2 * of.width + 3 * of.expert_width);
  return !of.in_cache() && of_rows < 3 * of.width * of.expert_width;
}

// As forward_many(), with the rows laid out and the weights read once, as they lie.
template <typename Value>
void forward_few(const Expert<Value>& of, int64_t expert, int64_t begin, int64_t size, const Value* hidden_TD, Value* gate_up_AF,
                 Value* out_AD) {
  const int64_t width = of.width, inner = of.expert_width, most = filled_rows<Value>(std::min(size, kChunk));
  Scratch<Value> scratch(Panels<Value>::numbers(width, most) + Panels<Value>::numbers(inner, most) + Rows<Value>::numbers(width) +
                         Rows<Value>::numbers(inner));
  Value* const hidden_panels = scratch.take(Panels<Value>::numbers(width, most));
  Value* const activated_panels = scratch.take(Panels<Value>::numbers(inner, most));
  const Rows<Value> hidden(scratch, width), activated(scratch, inner);
  const RowOps<Value>& ops = row_ops<Value>();
  const TileProducts products;
  for_each_chunk<Value>(begin, size, [&](int64_t slot, int64_t count, int64_t filled) {
    hidden.gather(hidden_TD, of.tokens + slot, count);
    const MatrixView<Value> gate_up{gate_up_AF + slot * 2 * inner, count, 2 * inner, 2 * inner};
    Panels<Value> hidden_t(hidden_panels, width, filled), activated_t(activated_panels, inner, filled);
    hidden_t.take_transposed(hidden.first(filled));
    multiply_transposed(of.gate_up_of(expert), hidden_t, gate_up);
    for (int64_t i = 0; i < count; ++i) ops.swiglu(gate_up.data + i * 2 * inner, activated.row(i), inner);
    activated.clear_behind(count);
    activated_t.take_transposed(activated.first(filled));
    multiply_transposed(of.down_of(expert), activated_t, {out_AD + slot * width, count, width, width});
  });
}

template <typename Value>
void forward_many(const Expert<Value>& of, int64_t expert, int64_t begin, int64_t size, const Value* hidden_TD, Value* gate_up_AF,
                   Value* out_AD) {
  const int64_t width = of.width, inner = of.expert_width;
  Scratch<Value> scratch(Panels<Value>::numbers(width, 2 * inner) + Panels<Value>::numbers(inner, width) + Rows<Value>::numbers(width) +
                            Rows<Value>::numbers(inner));
  Panels<Value> gate_up_t(scratch.take(Panels<Value>::numbers(width, 2 * inner)), width, 2 * inner);
  Panels<Value> down_t(scratch.take(Panels<Value>::numbers(inner, width)), inner, width);
  const Rows<Value> hidden(scratch, width), activated(scratch, inner);
  const RowOps<Value>& ops = row_ops<Value>();
  const TileProducts products;
  gate_up_t.take_transposed(of.gate_up_of(expert));
  down_t.take_transposed(of.down_of(expert));
  for_each_chunk<Value>(begin, size, [&](int64_t slot, int64_t count, int64_t filled) {
    hidden.gather(hidden_TD, of.tokens + slot, count);
    const MatrixView<Value> gate_up{gate_up_AF + slot * 2 * inner, count, 2 * inner, 2 * inner};
    multiply(hidden.first(filled), gate_up_t, gate_up);
    for (int64_t i = 0; i < count; ++i) ops.swiglu(gate_up.data + i * 2 * inner, activated.row(i), inner);
    activated.clear_behind(count);
    multiply(activated.first(filled), down_t, {out_AD + slot * width, count, width, width});
  });
}

// A weight matrix as the right-hand side of products: laid out as a whole where it then stays in cache, else a panel at a time, which
// is multiplied while it is there.
template <typename Value>
class RightWeight {
 public:
  RightWeight(Scratch<Value>& scratch, int64_t rows, int64_t columns, const Expert<Value>& of)
      : slab_(slab(columns, of)), memory_(scratch.take(numbers(rows, columns, of))), panels_(memory_, rows, columns) {}
  [[nodiscard]] static int64_t numbers(int64_t rows, int64_t columns, const Expert<Value>& of) {
    return Panels<Value>::numbers(rows, slab(columns, of));
  }

  void take(const MatrixView<const Value>& given) {
    given_ = given;
    if (slab_ == panels_.columns()) panels_.take(given);
  }
  /// out = left * this
  void meet(const MatrixView<const Value>& left, const MatrixView<Value>& out) const {
    if (slab_ == panels_.columns()) return multiply(left, panels_, out);
    for (int64_t column = 0; column < panels_.columns(); column += slab_) {
      const int64_t some = std::min(slab_, panels_.columns() - column);
      Panels<Value> panel(memory_, panels_.rows(), some);
      panel.take({given_.data + column, given_.rows, some, given_.leading});
      multiply(left, panel, {out.data + column, out.rows, some, out.leading});
    }
  }

 private:
  [[nodiscard]] static int64_t slab(int64_t columns, const Expert<Value>& of) {
    return of.in_cache() ? columns : std::min(columns, kPanelColumns);
  }
  int64_t slab_;  // columns that are laid out at a time
  Value* memory_;
  Panels<Value> panels_;
  MatrixView<const Value> given_{};
};

template <typename Value>
class BackwardGroup {
 public:
  explicit BackwardGroup(const Expert<Value>& of)
      : of_(of),
        numbers_(RightWeight<Value>::numbers(width_, inner_, of) + RightWeight<Value>::numbers(2 * inner_, width_, of) +
                 Panels<Value>::numbers(kChunk, width_) + Panels<Value>::numbers(kChunk, inner_) + 2 * Rows<Value>::numbers(width_) +
                 2 * Rows<Value>::numbers(inner_) + Rows<Value>::numbers(2 * inner_) + (width_ + 2 * inner_) * kColumns),
        floats_(kStaysWide<Value> ? 0 : 2 * inner_ * (width_ + kPadFloats) + width_ * (inner_ + kPadFloats)) {
    if constexpr (kStaysWide<Value>) return;  // take_sums()
    gate_up_sum_ = {floats_.take(2 * inner_ * (width_ + kPadFloats)), 2 * inner_, width_, width_ + kPadFloats};
    down_sum_ = {floats_.take(width_ * (inner_ + kPadFloats)), width_, inner_, inner_ + kPadFloats};
  }

  void run(int64_t expert, int64_t begin, int64_t size, const Value* hidden_TD, const Value* d_out_TD, const float* weight_A,
           const Value* gate_up_AF, const ExpertRowsGradients& to) {
    const TileProducts products;
    down_.take(of_.down_of(expert));
    gate_up_.take(of_.gate_up_of(expert));
    if constexpr (kStaysWide<Value>) take_sums(expert, to);
    TileSum sum = TileSum::Overwrite;
    for_each_chunk<Value>(begin, size, [&](int64_t slot, int64_t count, int64_t filled) {
      hidden_.gather(hidden_TD, of_.tokens + slot, count);
      d_out_.gather(d_out_TD, of_.tokens + slot, count);
      down_.meet(d_out_.first(filled), d_activated_.writable(count));
      float* const d_weight = to.weight_A.mutable_data_ptr<float>() + slot;
      for (int64_t i = 0; i < count; ++i) {
        d_weight[i] = ops_.swiglu_backward(gate_up_AF + (slot + i) * 2 * inner_, d_activated_.row(i), weight_A[slot + i],
                                           d_gate_up_.row(i), weighted_.row(i), inner_);
      }
      d_gate_up_.clear_behind(count);
      weighted_.clear_behind(count);
      gate_up_.meet(d_gate_up_.first(filled), {to.rows_AD.mutable_data_ptr<Value>() + slot * width_, count, width_, width_});
      add_weight_gradients(filled, sum);
      sum = TileSum::Add;
    });
    if constexpr (!kStaysWide<Value>) store(expert, to);
  }

 private:
  static constexpr int64_t kColumns = kChunk + kPad;

  // fp32 sums are the gradients themselves.
  void take_sums(int64_t expert, const ExpertRowsGradients& to) {
    gate_up_sum_ = {to.gate_up_EFD.mutable_data_ptr<float>() + expert * of_.size(), 2 * inner_, width_, width_};
    down_sum_ = {to.down_EDF.mutable_data_ptr<float>() + expert * of_.size() / 2, width_, inner_, inner_};
  }

  void add_weight_gradients(int64_t filled, TileSum sum) {
    const MatrixView<Value> d_gate_up_t{d_gate_up_t_, 2 * inner_, filled, kColumns}, d_out_t{d_out_t_, width_, filled, kColumns};
    layout_ops<Value>().transpose(d_gate_up_.first(filled), d_gate_up_t);
    layout_ops<Value>().transpose(d_out_.first(filled), d_out_t);
    Panels<Value> hidden(hidden_panels_, filled, width_), weighted(weighted_panels_, filled, inner_);
    hidden.take(hidden_.first(filled));
    weighted.take(weighted_.first(filled));
    multiply({d_gate_up_t.data, 2 * inner_, filled, kColumns}, hidden, gate_up_sum_, sum);
    multiply({d_out_t.data, width_, filled, kColumns}, weighted, down_sum_, sum);
  }

  void store(int64_t expert, const ExpertRowsGradients& to) const {
    const auto round = [&](const MatrixView<float>& from, const at::Tensor& all) {
      Value* const out = all.mutable_data_ptr<Value>() + expert * from.rows * from.columns;
      for (int64_t row = 0; row < from.rows; ++row) {
        ops_.store(from.data + row * from.leading, out + row * from.columns, from.columns);
      }
    };
    round(gate_up_sum_, to.gate_up_EFD);
    round(down_sum_, to.down_EDF);
  }

  const Expert<Value>& of_;
  const RowOps<Value>& ops_ = row_ops<Value>();
  int64_t width_ = of_.width, inner_ = of_.expert_width;
  Scratch<Value> numbers_;
  Scratch<float> floats_;
  RightWeight<Value> down_{numbers_, width_, inner_, of_}, gate_up_{numbers_, 2 * inner_, width_, of_};
  Value* hidden_panels_ = numbers_.take(Panels<Value>::numbers(kChunk, width_));
  Value* weighted_panels_ = numbers_.take(Panels<Value>::numbers(kChunk, inner_));
  Rows<Value> hidden_{numbers_, width_}, d_out_{numbers_, width_}, d_activated_{numbers_, inner_}, weighted_{numbers_, inner_};
  Rows<Value> d_gate_up_{numbers_, 2 * inner_};
  Value* d_gate_up_t_ = numbers_.take(2 * inner_ * kColumns);
  Value* d_out_t_ = numbers_.take(width_ * kColumns);
  MatrixView<float> gate_up_sum_{}, down_sum_{};
};

}  // namespace

bool has_tile_experts(const at::Tensor& hidden_TD, const at::Tensor& down_EDF) {
  const at::ScalarType type = hidden_TD.scalar_type();
  const bool fits = type == at::kFloat || (down_EDF.size(1) % 2 == 0 && down_EDF.size(2) % 2 == 0);
  return hidden_TD.is_cpu() && fits && has_tile_products(type);
}

ExpertRows tile_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                        const at::Tensor& token_A, std::span<const int64_t> offsets) {
  const KernelScope profiled("experts");
  const at::Tensor hidden = hidden_TD.contiguous(), gate_up = gate_up_EFD.contiguous(), down = down_EDF.contiguous();
  const at::Tensor tokens = token_A.contiguous();
  ExpertRows result = {at::empty({offsets.back(), gate_up.size(1)}, hidden.options()),
                       at::empty({offsets.back(), gate_up.size(2)}, hidden.options())};
  for_tile_type(hidden.scalar_type(), [&](auto number) {
    using Value = decltype(number);
    const Expert<Value> of(gate_up, down, tokens);
    for_each_group(offsets, [&](int64_t expert, int64_t begin, int64_t size) {
      if (size == 0) return;
      const auto forward = lays_out_rows(of, size) ? forward_few<Value> : forward_many<Value>;
      forward(of, expert, begin, size, hidden.const_data_ptr<Value>(), result.gate_up.mutable_data_ptr<Value>(),
              result.out_AD.mutable_data_ptr<Value>());
    });
  });
  return result;
}

ExpertRowsGradients tile_experts_backward(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                          const at::Tensor& token_A, const at::Tensor& weight_A, std::span<const int64_t> offsets,
                                          const at::Tensor& gate_up_AF, const at::Tensor& d_out_TD) {
  const KernelScope profiled("experts backward");
  const at::Tensor hidden = hidden_TD.contiguous(), gate_up = gate_up_EFD.contiguous(), down = down_EDF.contiguous();
  const at::Tensor tokens = token_A.contiguous(), weights = weight_A.contiguous(), d_out = d_out_TD.contiguous();
  const ExpertRowsGradients result = {at::empty({offsets.back(), gate_up.size(2)}, hidden.options()), at::empty_like(gate_up),
                                      at::empty_like(down), at::empty_like(weights)};
  for_tile_type(hidden.scalar_type(), [&](auto number) {
    using Value = decltype(number);
    const Expert<Value> of(gate_up, down, tokens);
    for_each_group(offsets, [&](int64_t expert, int64_t begin, int64_t size) {
      if (size == 0) {
        result.gate_up_EFD.select(0, expert).zero_();
        result.down_EDF.select(0, expert).zero_();
        return;
      }
      BackwardGroup<Value>(of).run(expert, begin, size, hidden.const_data_ptr<Value>(), d_out.const_data_ptr<Value>(),
                                   weights.const_data_ptr<float>(), gate_up_AF.const_data_ptr<Value>(), result);
    });
  });
  return result;
}

}  // namespace switchyard
