#include "switchyard/kernels/expert_rows.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/grouped_gemm.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/swiglu.hpp"
#include "switchyard/kernels/tile_experts.hpp"

namespace switchyard {
namespace {

// ATen's bf16 product generates code for each shape it meets and keeps a limited number of them, .3 MB each: groups of ever new
// sizes spent three quarters of a training step in the code generator. So groups are filled up to one of four sizes in each
// doubling, on average 6 % more rows; small ones to whole tiles.
int64_t filled_size(int64_t size, at::ScalarType type) {
  const int64_t tile = type == at::kBFloat16 ? 32 : 8;
  const auto step = std::max(tile, static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(size)) / 4));
  return rounded_up(size, step);
}

// The slots with each group filled up, U in all; what was added has no token and weighs nothing.
struct PaddedSlots {
  std::vector<int64_t> offsets;         // of the groups as given
  std::vector<int64_t> padded_offsets;  // of the groups filled up

  PaddedSlots(std::vector<int64_t> given, at::ScalarType type) : offsets(std::move(given)), padded_offsets(offsets.size(), 0) {
    for (size_t i = 1; i < offsets.size(); ++i) {
      padded_offsets[i] = padded_offsets[i - 1] + filled_size(offsets[i] - offsets[i - 1], type);
    }
  }

  [[nodiscard]] at::Tensor filled(const at::Tensor& values_A, double filler) const {
    at::Tensor values_U = at::full({padded_offsets.back()}, filler, values_A.options());
    for_each_group([&](int64_t from, int64_t to, int64_t size) {
      values_U.narrow(0, to, size).copy_(values_A.narrow(0, from, size));
    });
    return values_U;
  }
  [[nodiscard]] at::Tensor without_filling(const at::Tensor& values_U) const {
    std::vector<int64_t> sizes = values_U.sizes().vec();
    sizes[0] = offsets.back();
    at::Tensor values_A = at::empty(sizes, values_U.options());
    for_each_group([&](int64_t from, int64_t to, int64_t size) {
      values_A.narrow(0, from, size).copy_(values_U.narrow(0, to, size));
    });
    return values_A;
  }

 private:
  template <typename Body>
  void for_each_group(const Body& body) const {
    for (size_t i = 1; i < offsets.size(); ++i) {
      if (offsets[i] > offsets[i - 1]) body(offsets[i - 1], padded_offsets[i - 1], offsets[i] - offsets[i - 1]);
    }
  }
};

}  // namespace

ExpertRows expert_rows(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                       const at::Tensor& token_A, std::span<const int64_t> offsets) {
  const c10::NoGradGuard no_grad;
  if (has_tile_experts(hidden_TD, down_EDF)) return tile_experts(hidden_TD, gate_up_EFD, down_EDF, token_A, offsets);
  const PaddedSlots slots({offsets.begin(), offsets.end()}, hidden_TD.scalar_type());
  const at::Tensor rows_UD = gather_rows(hidden_TD, slots.filled(token_A, kNoToken));
  const at::Tensor gate_up = grouped_rows_times_transposed(rows_UD, gate_up_EFD, slots.padded_offsets);
  const at::Tensor out_UD = grouped_rows_times_transposed(swiglu_forward(gate_up), down_EDF, slots.padded_offsets);
  return {gate_up, slots.without_filling(out_UD)};
}

ExpertRowsGradients expert_rows_backward(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                         const at::Tensor& token_A, const at::Tensor& weight_A, std::span<const int64_t> offsets,
                                         const at::Tensor& gate_up, const at::Tensor& d_out_TD) {
  const c10::NoGradGuard no_grad;
  if (has_tile_experts(hidden_TD, down_EDF)) {
    return tile_experts_backward(hidden_TD, gate_up_EFD, down_EDF, token_A, weight_A, offsets, gate_up, d_out_TD);
  }
  const PaddedSlots slots({offsets.begin(), offsets.end()}, hidden_TD.scalar_type());
  const at::Tensor token_U = slots.filled(token_A, kNoToken);
  // d weight_a = <d out_t, W h_a> = <W^T d out_t, h_a>: the outputs of the experts need not be saved.
  const at::Tensor d_out_UD = gather_rows(d_out_TD, token_U);
  const at::Tensor d_hidden_UF = grouped_rows_times(d_out_UD, down_EDF, slots.padded_offsets);
  const SwigluGradient inner = swiglu_backward(gate_up, d_hidden_UF, slots.filled(weight_A, 0.0));
  return {slots.without_filling(grouped_rows_times(inner.gate_up_AF, gate_up_EFD, slots.padded_offsets)),
          grouped_outer(inner.gate_up_AF, gather_rows(hidden_TD, token_U), slots.padded_offsets),
          grouped_outer(d_out_UD, inner.weighted, slots.padded_offsets), slots.without_filling(inner.weight_A)};
}

}  // namespace switchyard
