#include "switchyard/kernels/combine.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cstddef>
#include <cstring>
#include <iterator>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/row_blocks.hpp"
#include "switchyard/kernels/row_ops.hpp"

namespace switchyard {
namespace {

// The slots of each token: those of t are slot[begin[t]] to slot[begin[t + 1] - 1], rising.
struct TokenSlots {
  std::vector<int64_t> begin;
  std::vector<int64_t> slot;
};

TokenSlots slots_by_token(const at::Tensor& token_A, int64_t num_tokens) {
  const at::Tensor host_A = token_A.contiguous();
  const int64_t* tokens = host_A.const_data_ptr<int64_t>();
  const int64_t num_slots = host_A.numel();
  TokenSlots result{std::vector<int64_t>(static_cast<size_t>(num_tokens) + 1, 0),
                    std::vector<int64_t>(static_cast<size_t>(num_slots))};
  for (int64_t a = 0; a < num_slots; ++a) {
    SWITCHYARD_CHECK(tokens[a] >= kNoToken && tokens[a] < num_tokens, ShapeError, "slot ", a, " has token ", tokens[a],
                     "; expected 0 to ", num_tokens - 1, ", or ", kNoToken, " for none");
    if (tokens[a] != kNoToken) ++result.begin[static_cast<size_t>(tokens[a]) + 1];
  }
  for (size_t t = 1; t < result.begin.size(); ++t) result.begin[t] += result.begin[t - 1];
  std::vector<int64_t> next(result.begin.begin(), result.begin.end() - 1);
  for (int64_t a = 0; a < num_slots; ++a) {
    if (tokens[a] == kNoToken) continue;
    result.slot[static_cast<size_t>(next[static_cast<size_t>(tokens[a])]++)] = a;
  }
  return result;
}

template <typename Value, typename Wide>
void combine(const Value* rows, const Wide* weights, const TokenSlots& slots, Value* out, int64_t num_tokens,
             int64_t width) {
  constexpr int64_t kTokensPerTask = 64;
  at::parallel_for(0, num_tokens, kTokensPerTask, [&](int64_t first, int64_t last) {
    const RowOps<Value>& ops = row_ops<Value>();
    std::vector<const Value*> rows_K;
    std::vector<Wide> weights_K;
    for (int64_t token = first; token < last; ++token) {
      rows_K.clear();
      weights_K.clear();
      const auto t = static_cast<size_t>(token);
      for (int64_t i = slots.begin[t]; i < slots.begin[t + 1]; ++i) {
        const int64_t slot = slots.slot[static_cast<size_t>(i)];
        rows_K.push_back(rows + slot * width);
        weights_K.push_back(weights ? weights[slot] : Wide(1));
      }
      ops.weighted_sum(rows_K.data(), weights_K.data(), std::ssize(rows_K), out + token * width, width);
    }
  });
}

}  // namespace

at::Tensor gather_rows(const at::Tensor& rows_TD, const at::Tensor& token_A) {
  const KernelScope profiled("gather rows of slots");
  const at::Tensor rows = rows_TD.contiguous();
  const at::Tensor tokens_A = token_A.contiguous();
  at::Tensor out_AD = at::empty({tokens_A.numel(), rows.size(1)}, rows.options());
  const auto row_bytes = static_cast<size_t>(rows.size(1)) * static_cast<size_t>(rows.element_size());
  const auto* from = static_cast<const std::byte*>(rows.const_data_ptr());
  auto* to = static_cast<std::byte*>(out_AD.mutable_data_ptr());
  const int64_t* tokens = tokens_A.const_data_ptr<int64_t>();
  for_each_row_block(tokens_A.numel(), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t a = begin; a < end; ++a) {
      SWITCHYARD_CHECK(tokens[a] >= kNoToken && tokens[a] < rows.size(0), ShapeError, "slot ", a, " has token ", tokens[a],
                       "; expected 0 to ", rows.size(0) - 1, ", or ", kNoToken, " for none");
      std::byte* row = to + static_cast<size_t>(a) * row_bytes;
      if (tokens[a] == kNoToken) {
        std::memset(row, 0, row_bytes);
      } else {
        std::memcpy(row, from + static_cast<size_t>(tokens[a]) * row_bytes, row_bytes);
      }
    }
  });
  return out_AD;
}

at::Tensor combine_rows(const at::Tensor& rows_AD, const at::Tensor& weight_A, const at::Tensor& token_A,
                        int64_t num_tokens) {
  const KernelScope profiled("combine rows of slots");
  const at::Tensor rows = rows_AD.contiguous();
  const at::Tensor weights = weight_A.defined() ? weight_A.contiguous() : weight_A;
  const TokenSlots slots = slots_by_token(token_A, num_tokens);
  const int64_t width = rows.size(1);
  at::Tensor out_TD = at::empty({num_tokens, width}, rows.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, rows.scalar_type(), "combine_rows", [&] {
    using Wide = WideOf<scalar_t>;
    combine(rows.const_data_ptr<scalar_t>(), weights.defined() ? weights.const_data_ptr<Wide>() : nullptr, slots,
            out_TD.mutable_data_ptr<scalar_t>(), num_tokens, width);
  });
  return out_TD;
}

}  // namespace switchyard
