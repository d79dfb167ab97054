#pragma once
// What one rank has counted so far in a step, to be saved in the middle of accumulation.

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace switchyard {

/// Tensors by name, as safetensors files keep them. Only StepBalance reads what is in them.
struct StepProgress {
  std::map<std::string, at::Tensor> tensors{};
};

/// Adds a copy, so that the step may go on. Undefined tensors are left out.
void put(StepProgress& progress, const std::string& name, const at::Tensor& values);
template <typename Number>  // bool, int64_t or double
void put(StepProgress& progress, const std::string& name, const std::vector<Number>& values);

/// Copies a kept tensor over one of the same name, type and shape.
/// @throws ShapeError when it is missing or of another type or shape
void take(const StepProgress& progress, const std::string& name, at::Tensor& values);
template <typename Number>  // the same
void take(const StepProgress& progress, const std::string& name, std::vector<Number>& values);

}  // namespace switchyard
