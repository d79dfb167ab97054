#include "kernels/check.hpp"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "switchyard/core/rng.hpp"

namespace switchyard::testing {
namespace {

struct Differentiated {
  at::Tensor value;
  std::vector<at::Tensor> gradients;
};

// The direction is rounded to bf16, so that it is the same in every type.
Differentiated differentiate(const TensorFunction& function, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().clone().set_requires_grad(true));
  const at::Tensor value = function(leaves);
  const at::Tensor direction = random_tensor(value.sizes(), 99, at::kBFloat16).to(value.scalar_type());
  return {value.detach(), torch::autograd::grad({value}, leaves, {direction})};
}

}  // namespace

at::Tensor random_tensor(c10::IntArrayRef sizes, uint64_t stream, at::ScalarType type) {
  return Rng(7, "test", {stream}).normal_tensor(sizes, 1.0).to(type);
}

double max_difference(const at::Tensor& left, const at::Tensor& right) {
  if (left.sizes() != right.sizes()) return std::numeric_limits<double>::infinity();
  if (left.numel() == 0) return 0.0;
  const at::Tensor difference = left.detach().to(at::kDouble).sub(right.detach().to(at::kDouble)).abs();
  return difference.isnan().any().item<bool>() ? std::numeric_limits<double>::infinity() : difference.max().item<double>();
}

void expect_same_function(const TensorFunction& tested, const TensorFunction& reference,
                          const std::vector<at::Tensor>& inputs, double tolerance) {
  const Differentiated ours = differentiate(tested, inputs);
  const Differentiated theirs = differentiate(reference, inputs);
  EXPECT_LE(max_difference(ours.value, theirs.value), tolerance) << "value";
  EXPECT_EQ(ours.value.scalar_type(), theirs.value.scalar_type());
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_LE(max_difference(ours.gradients[i], theirs.gradients[i]), tolerance) << "gradient of input " << i;
    EXPECT_EQ(ours.gradients[i].scalar_type(), inputs[i].scalar_type()) << "gradient of input " << i;
  }
}

void expect_close_in(at::ScalarType type, const TensorFunction& tested, const TensorFunction& reference,
                     const std::vector<at::Tensor>& inputs, double tolerance) {
  std::vector<at::Tensor> narrow, wide;
  for (const at::Tensor& input : inputs) {
    narrow.push_back(input.to(type));
    wide.push_back(narrow.back().to(at::kDouble));
  }
  const Differentiated ours = differentiate(tested, narrow);
  const Differentiated theirs = differentiate(reference, wide);
  const auto expect_close = [&](const at::Tensor& left, const at::Tensor& right, const std::string& what) {
    EXPECT_EQ(left.scalar_type(), type) << what;
    EXPECT_LE(max_difference(left, right), tolerance * right.abs().max().item<double>()) << what;
  };
  expect_close(ours.value, theirs.value, "value");
  for (size_t i = 0; i < inputs.size(); ++i) {
    expect_close(ours.gradients[i], theirs.gradients[i], "gradient of input " + std::to_string(i));
  }
}

void expect_gradient(const TensorFunction& function, const std::vector<at::Tensor>& inputs, double tolerance,
                     int64_t samples) {
  constexpr double kStep = 1e-5;
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().clone().set_requires_grad(true));
  const std::vector<at::Tensor> gradients = torch::autograd::grad({function(leaves)}, leaves);
  const c10::NoGradGuard no_grad;
  Rng rng(7, "elements");
  for (size_t i = 0; i < leaves.size(); ++i) {
    double* values = leaves[i].mutable_data_ptr<double>();
    const at::Tensor gradient = gradients[i].contiguous();
    for (int64_t sample = 0; sample < std::min(samples, leaves[i].numel()); ++sample) {
      const auto element = static_cast<int64_t>(rng.below(static_cast<uint64_t>(leaves[i].numel())));
      const double original = values[element];
      values[element] = original + kStep;
      const double above = function(leaves).item<double>();
      values[element] = original - kStep;
      const double below = function(leaves).item<double>();
      values[element] = original;
      EXPECT_NEAR(gradient.const_data_ptr<double>()[element], (above - below) / (2.0 * kStep), tolerance)
          << "element " << element << " of input " << i;
    }
  }
}

}  // namespace switchyard::testing
