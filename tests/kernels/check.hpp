#pragma once
// Checks that the kernel and model tests share.

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

namespace switchyard::testing {

/// N(0, 1) values from a named stream; the same on every machine.
[[nodiscard]] at::Tensor random_tensor(c10::IntArrayRef sizes, uint64_t stream, at::ScalarType type = at::kDouble);

/// The largest absolute difference, in double; infinity when the shapes differ.
[[nodiscard]] double max_difference(const at::Tensor& left, const at::Tensor& right);

using TensorFunction = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// Value and gradients of both functions on the same inputs agree. The result is projected on a fixed random direction, so
/// that one backward tests the whole derivative.
void expect_same_function(const TensorFunction& tested, const TensorFunction& reference,
                          const std::vector<at::Tensor>& inputs, double tolerance);

/// A function of numbers of a type, bf16 or fp32, against its reference in double on the same numbers: value and gradients
/// differ by at most `tolerance` times the largest of them.
void expect_close_in(at::ScalarType type, const TensorFunction& tested, const TensorFunction& reference,
                     const std::vector<at::Tensor>& inputs, double tolerance);

/// The gradients of a function to a scalar agree with central differences, at up to `samples` elements of each input.
void expect_gradient(const TensorFunction& function, const std::vector<at::Tensor>& inputs, double tolerance,
                     int64_t samples = 12);

}  // namespace switchyard::testing
