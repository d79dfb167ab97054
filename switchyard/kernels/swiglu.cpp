#include "switchyard/kernels/swiglu.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

int64_t checked_width(const at::Tensor& gate_up) {
  SWITCHYARD_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, ShapeError, "swiglu: gate_up has shape ",
                   gate_up.sizes(), "; expected [rows, 2 F]");
  return gate_up.size(1) / 2;
}

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate_up) {
    context->save_for_backward({gate_up});
    return swiglu_reference(gate_up);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    return {swiglu_backward(context->get_saved_variables()[0], gradients[0], at::Tensor()).gate_up};
  }
};

}  // namespace

at::Tensor swiglu_reference(const at::Tensor& gate_up) {
  const int64_t width = checked_width(gate_up);
  const at::ScalarType wide = wide_type(gate_up.scalar_type());
  const at::Tensor gate = gate_up.narrow(1, 0, width).to(wide);
  const at::Tensor up = gate_up.narrow(1, width, width).to(wide);
  return at::silu(gate).mul(up).to(gate_up.scalar_type());
}

at::Tensor swiglu(const at::Tensor& gate_up) { return SwigluFunction::apply(gate_up); }

SwigluGradient swiglu_backward(const at::Tensor& gate_up, const at::Tensor& d_hidden, const at::Tensor& weight_A) {
  const int64_t width = checked_width(gate_up);
  const at::ScalarType type = gate_up.scalar_type();
  const at::ScalarType wide = wide_type(type);
  const at::Tensor gate = gate_up.narrow(1, 0, width).to(wide);
  const at::Tensor up = gate_up.narrow(1, width, width).to(wide);
  const at::Tensor sigmoid = at::sigmoid(gate);
  const at::Tensor silu = gate.mul(sigmoid);
  const at::Tensor hidden = silu.mul(up);
  const at::Tensor d_weighted = d_hidden.to(wide);

  SwigluGradient gradient;
  at::Tensor d_plain = d_weighted;
  if (weight_A.defined()) {
    gradient.weight_A = hidden.mul(d_weighted).sum(1);
    gradient.weighted = hidden.mul(weight_A.unsqueeze(1)).to(type);
    d_plain = d_weighted.mul(weight_A.unsqueeze(1));
  } else {
    gradient.weighted = hidden.to(type);
  }
  // d silu / d x = sigmoid (1 + x (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
  const at::Tensor d_silu = sigmoid.add(silu).sub(silu.mul(sigmoid));
  gradient.gate_up = at::cat({d_plain.mul(up).mul(d_silu), d_plain.mul(silu)}, 1).to(type);
  return gradient;
}

}  // namespace switchyard
