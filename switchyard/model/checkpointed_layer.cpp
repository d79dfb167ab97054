#include "switchyard/model/checkpointed_layer.hpp"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/kernels/first_derivative.hpp"

namespace switchyard {
namespace {

using LayerFunction = std::function<at::Tensor(const at::Tensor&)>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Carries a function to the backward through the context's map of values.
struct AgainHolder : torch::CustomClassHolder {
  explicit AgainHolder(LayerFunction function) : again(std::move(function)) {}
  LayerFunction again;
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  static at::Tensor forward(AutogradContext* context, at::TensorList hidden_and_leaves, const LayerFunction& first,
                            const c10::intrusive_ptr<AgainHolder>& again) {
    context->save_for_backward(hidden_and_leaves.vec());
    context->saved_data["again"] = c10::IValue::make_capsule(again);
    return first(hidden_and_leaves[0]);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("recomputed layer", "keep the activations, with operations that have second derivatives");
    variable_list inputs = context->get_saved_variables();
    const auto again = c10::static_intrusive_pointer_cast<AgainHolder>(context->saved_data["again"].toCapsule());
    const c10::AutoGradMode enable_grad(true);
    inputs[0] = inputs[0].detach().set_requires_grad(context->needs_input_grad(0));
    const at::Tensor out = again->again(inputs[0]);

    variable_list wanted;
    for (const at::Tensor& input : inputs) {
      if (input.requires_grad()) wanted.push_back(input);
    }
    const variable_list found = torch::autograd::grad({out}, wanted, {gradients[0]}, /*retain_graph=*/std::nullopt,
                                                      /*create_graph=*/false, /*allow_unused=*/true);
    variable_list result(inputs.size() + 2);  // the two functions have no gradient
    size_t next = 0;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].requires_grad()) result[i] = found[next++];
    }
    return result;
  }
};

}  // namespace

at::Tensor run_checkpointed(const at::Tensor& hidden, const std::vector<at::Tensor>& leaves, const LayerFunction& first,
                            LayerFunction again) {
  if (!c10::GradMode::is_enabled()) return first(hidden);
  variable_list inputs = {hidden};
  inputs.insert(inputs.end(), leaves.begin(), leaves.end());
  // As a TensorList: in any other container the tensors would not count as inputs.
  return CheckpointFunction::apply(at::TensorList(inputs), first, c10::make_intrusive<AgainHolder>(std::move(again)));
}

}  // namespace switchyard
