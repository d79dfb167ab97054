#include "switchyard/kernels/swiglu.hpp"

#include <ATen/Dispatch.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/row_blocks.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

int64_t checked_width(const at::Tensor& gate_up_AF) {
  SWITCHYARD_CHECK(gate_up_AF.dim() == 2 && gate_up_AF.size(1) % 2 == 0, ShapeError, "swiglu: gate_up has shape ",
                   gate_up_AF.sizes(), "; expected [rows, 2 F]");
  return gate_up_AF.size(1) / 2;
}

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate_up_AF) {
    context->save_for_backward({gate_up_AF});
    return swiglu_forward(gate_up_AF);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    refuse_second_derivative("swiglu", "swiglu_reference()");
    return {swiglu_backward(context->get_saved_variables()[0], gradients[0], at::Tensor()).gate_up_AF};
  }
};

}  // namespace

at::Tensor swiglu_reference(const at::Tensor& gate_up_AF) {
  const int64_t width = checked_width(gate_up_AF);
  const at::ScalarType wide = wide_type(gate_up_AF.scalar_type());
  const at::Tensor gate = gate_up_AF.narrow(1, 0, width).to(wide);
  const at::Tensor up = gate_up_AF.narrow(1, width, width).to(wide);
  return at::silu(gate).mul(up).to(gate_up_AF.scalar_type());
}

SwigluGradient swiglu_backward_reference(const at::Tensor& gate_up_AF, const at::Tensor& d_hidden, const at::Tensor& weight_A) {
  const int64_t width = checked_width(gate_up_AF);
  const at::ScalarType type = gate_up_AF.scalar_type();
  const at::ScalarType wide = wide_type(type);
  const at::Tensor gate = gate_up_AF.narrow(1, 0, width).to(wide);
  const at::Tensor up = gate_up_AF.narrow(1, width, width).to(wide);
  const at::Tensor sigmoid = at::sigmoid(gate);
  const at::Tensor silu = gate.mul(sigmoid);
  const at::Tensor hidden = silu.mul(up);
  const at::Tensor d_weighted = d_hidden.to(wide);
  const at::Tensor weight_A1 = weight_A.defined() ? weight_A.unsqueeze(1) : at::ones({1, 1}, hidden.options());
  const at::Tensor d_plain = d_weighted.mul(weight_A1);
  // d silu / d x = sigmoid (1 + x (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
  const at::Tensor d_silu = sigmoid.add(silu).sub(silu.mul(sigmoid));
  SwigluGradient gradient;
  gradient.gate_up_AF = at::cat({d_plain.mul(up).mul(d_silu), d_plain.mul(silu)}, 1).to(type);
  gradient.weighted = hidden.mul(weight_A1).to(type);
  if (weight_A.defined()) gradient.weight_A = hidden.mul(d_weighted).sum(1);
  return gradient;
}

at::Tensor swiglu_forward(const at::Tensor& gate_up_AF) {
  const KernelScope profiled("swiglu");
  const int64_t width = checked_width(gate_up_AF);
  if (!gate_up_AF.is_cpu()) return swiglu_reference(gate_up_AF);
  const at::Tensor gate_up = gate_up_AF.contiguous();
  at::Tensor out_AF = at::empty({gate_up_AF.size(0), width}, gate_up_AF.options());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gate_up_AF.scalar_type(), "swiglu", [&] {
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const scalar_t* in = gate_up.const_data_ptr<scalar_t>();
    scalar_t* out = out_AF.mutable_data_ptr<scalar_t>();
    for_each_row_block(gate_up_AF.size(0), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) ops.swiglu(in + 2 * row * width, out + row * width, width);
    });
  });
  return out_AF;
}

at::Tensor swiglu(const at::Tensor& gate_up_AF) {
  (void)checked_width(gate_up_AF);
  return SwigluFunction::apply(gate_up_AF);
}

SwigluGradient swiglu_backward(const at::Tensor& gate_up_AF, const at::Tensor& d_hidden, const at::Tensor& weight_A) {
  const KernelScope profiled("swiglu backward");
  const int64_t width = checked_width(gate_up_AF);
  const int64_t num_rows = gate_up_AF.size(0);
  if (!gate_up_AF.is_cpu()) return swiglu_backward_reference(gate_up_AF, d_hidden, weight_A);
  const at::Tensor gate_up = gate_up_AF.contiguous();
  const at::Tensor d_out_AF = d_hidden.contiguous();
  const at::Tensor weights = weight_A.defined() ? weight_A.contiguous() : weight_A;
  SwigluGradient gradient{at::empty_like(gate_up), at::empty_like(d_out_AF), at::Tensor()};
  if (weights.defined()) gradient.weight_A = at::empty_like(weights);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gate_up_AF.scalar_type(), "swiglu_backward", [&] {
    using Wide = WideOf<scalar_t>;
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const scalar_t* in = gate_up.const_data_ptr<scalar_t>();
    const scalar_t* d_out = d_out_AF.const_data_ptr<scalar_t>();
    const Wide* weight = weights.defined() ? weights.const_data_ptr<Wide>() : nullptr;
    scalar_t* d_in = gradient.gate_up_AF.mutable_data_ptr<scalar_t>();
    scalar_t* weighted = gradient.weighted.mutable_data_ptr<scalar_t>();
    Wide* d_weight = weight ? gradient.weight_A.mutable_data_ptr<Wide>() : nullptr;
    for_each_row_block(num_rows, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const Wide product = ops.swiglu_backward(in + 2 * row * width, d_out + row * width, weight ? weight[row] : Wide(1),
                                                 d_in + 2 * row * width, weighted + row * width, width);
        if (weight) d_weight[row] = product;
      }
    });
  });
  return gradient;
}

}  // namespace switchyard
