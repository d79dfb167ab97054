#include "switchyard/kernels/experts.hpp"

#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/expert_rows.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/swiglu.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_shapes(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF) {
  SWITCHYARD_CHECK(hidden_TD.dim() == 2 && gate_up_EFD.dim() == 3 && down_EDF.dim() == 3, ShapeError,
                   "experts: hidden has shape ", hidden_TD.sizes(), ", gate_up ", gate_up_EFD.sizes(), ", down ",
                   down_EDF.sizes(), "; expected [T, D], [E, 2F, D], [E, D, F]");
  SWITCHYARD_CHECK(gate_up_EFD.size(0) == down_EDF.size(0) && gate_up_EFD.size(1) == 2 * down_EDF.size(2) &&
                       gate_up_EFD.size(2) == hidden_TD.size(1) && down_EDF.size(1) == hidden_TD.size(1),
                   ShapeError, "experts: hidden ", hidden_TD.sizes(), ", gate_up ", gate_up_EFD.sizes(), " and down ",
                   down_EDF.sizes(), " do not fit [T, D], [E, 2F, D], [E, D, F]");
  SWITCHYARD_CHECK(hidden_TD.size(1) >= 1 && down_EDF.size(2) >= 1, ShapeError, "experts: the widths are D = ", hidden_TD.size(1),
                   " and F = ", down_EDF.size(2), "; expected at least 1");
  SWITCHYARD_CHECK(gate_up_EFD.scalar_type() == hidden_TD.scalar_type() &&
                       down_EDF.scalar_type() == hidden_TD.scalar_type(),
                   ShapeError, "experts: hidden is ", hidden_TD.scalar_type(), ", weights are ",
                   gate_up_EFD.scalar_type(), " and ", down_EDF.scalar_type(), "; expected one type");
}

// Saves the projections before the nonlinearity and nothing else of size A: the gathered rows and the activations are
// made again in backward, which costs one pass over memory each.
struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                            const at::Tensor& down_EDF, const at::Tensor& weight_A, const at::Tensor& token_A,
                            const std::vector<int64_t>& offsets) {
    const ExpertRows rows = expert_rows(hidden_TD, gate_up_EFD, down_EDF, token_A, offsets);
    context->save_for_backward({hidden_TD, gate_up_EFD, down_EDF, weight_A, token_A, rows.gate_up});
    context->saved_data["offsets"] = offsets;
    return combine_rows(rows.out_AD, weight_A, token_A, hidden_TD.size(0));
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("grouped_experts", "grouped_experts_reference()");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &hidden_TD = saved[0], &gate_up_EFD = saved[1], &down_EDF = saved[2], &weight_A = saved[3],
                     &token_A = saved[4], &gate_up = saved[5];
    const std::vector<int64_t> offsets = context->saved_data["offsets"].toIntVector();
    const ExpertRowsGradients result =
        expert_rows_backward(hidden_TD, gate_up_EFD, down_EDF, token_A, weight_A, offsets, gate_up, gradients[0]);
    const at::Tensor d_hidden_TD = combine_rows(result.rows_AD, at::Tensor(), token_A, hidden_TD.size(0));
    return {d_hidden_TD, result.gate_up_EFD, result.down_EDF, result.weight_A, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

std::vector<int64_t> checked_offsets(const at::Tensor& hidden_TD, int64_t num_experts, const ExpertSlots& slots) {
  const int64_t num_slots = slots.token_A.numel();
  SWITCHYARD_CHECK(slots.token_A.dim() == 1 && slots.token_A.scalar_type() == at::kLong, ShapeError,
                   "experts: token_A must be int64 [A]");
  SWITCHYARD_CHECK(slots.weight_A.dim() == 1 && slots.weight_A.size(0) == num_slots &&
                       slots.weight_A.scalar_type() == wide_type(hidden_TD.scalar_type()),
                   ShapeError, "experts: weight_A has shape ", slots.weight_A.sizes(), " and type ",
                   slots.weight_A.scalar_type(), "; expected [", num_slots, "] and ",
                   wide_type(hidden_TD.scalar_type()));
  SWITCHYARD_CHECK(slots.offsets_E.dim() == 1 && slots.offsets_E.scalar_type() == at::kLong &&
                       slots.offsets_E.size(0) == num_experts + 1,
                   ShapeError, "experts: offsets_E has shape ", slots.offsets_E.sizes(), " and type ",
                   slots.offsets_E.scalar_type(), "; expected [", num_experts + 1, "] for ", num_experts, " experts, and int64");
  if (num_slots > 0) {
    const int64_t lowest = slots.token_A.min().item<int64_t>();
    const int64_t highest = slots.token_A.max().item<int64_t>();
    SWITCHYARD_CHECK(lowest >= 0 && highest < hidden_TD.size(0), ShapeError, "experts: slots have tokens ", lowest, " to ",
                     highest, "; expected 0 to ", hidden_TD.size(0) - 1);
  }
  const at::Tensor host_E = slots.offsets_E.to(at::kCPU).contiguous();
  const int64_t* begin = host_E.const_data_ptr<int64_t>();
  std::vector<int64_t> offsets(begin, begin + host_E.numel());
  bool rising = offsets.front() == 0 && offsets.back() == num_slots;
  for (size_t i = 1; i < offsets.size(); ++i) rising = rising && offsets[i - 1] <= offsets[i];
  SWITCHYARD_CHECK(rising, ShapeError, "experts: offsets_E must rise from 0 to the ", num_slots, " slots");
  return offsets;
}

at::Tensor grouped_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                           const ExpertSlots& slots) {
  check_shapes(hidden_TD, gate_up_EFD, down_EDF);
  const std::vector<int64_t> offsets = checked_offsets(hidden_TD, gate_up_EFD.size(0), slots);
  return ExpertsFunction::apply(hidden_TD, gate_up_EFD, down_EDF, slots.weight_A, slots.token_A, offsets);
}

at::Tensor grouped_experts_reference(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                                     const at::Tensor& down_EDF, const ExpertSlots& slots) {
  check_shapes(hidden_TD, gate_up_EFD, down_EDF);
  const std::vector<int64_t> offsets = checked_offsets(hidden_TD, gate_up_EFD.size(0), slots);
  const at::ScalarType wide = wide_type(hidden_TD.scalar_type());
  at::Tensor out_TD = at::zeros(hidden_TD.sizes(), wide);
  for (int64_t expert = 0; expert < gate_up_EFD.size(0); ++expert) {
    const int64_t begin = offsets[static_cast<size_t>(expert)];
    const int64_t size = offsets[static_cast<size_t>(expert) + 1] - begin;
    const at::Tensor token = slots.token_A.narrow(0, begin, size);
    const at::Tensor weight = slots.weight_A.narrow(0, begin, size).unsqueeze(1);
    const at::Tensor gate_up = at::mm(at::index_select(hidden_TD, 0, token), gate_up_EFD.select(0, expert).t());
    const at::Tensor out = at::mm(swiglu_reference(gate_up), down_EDF.select(0, expert).t());
    out_TD = at::index_add(out_TD, 0, token, out.to(wide).mul(weight));
  }
  return out_TD.to(hidden_TD.scalar_type());
}

}  // namespace switchyard
