#include "switchyard/balance/progress.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

template <typename Number>
at::Tensor tensor_of(const std::vector<Number>& values, at::ScalarType type) {
  at::Tensor kept = at::empty({static_cast<int64_t>(values.size())}, type);
  std::copy(values.begin(), values.end(), kept.mutable_data_ptr<Number>());
  return kept;
}

template <typename Number>
void take_numbers(const StepProgress& progress, const std::string& name, at::ScalarType type, std::vector<Number>& values) {
  at::Tensor kept = at::empty({static_cast<int64_t>(values.size())}, type);
  take(progress, name, kept);
  std::copy_n(kept.const_data_ptr<Number>(), values.size(), values.begin());
}

}  // namespace

void put(StepProgress& progress, const std::string& name, const at::Tensor& values) {
  if (values.defined()) progress.tensors[name] = values.clone();
}

void put(StepProgress& progress, const std::string& name, const std::vector<bool>& flags) {
  progress.tensors[name] = tensor_of(flags, at::kBool);
}

void put(StepProgress& progress, const std::string& name, const std::vector<int64_t>& values) {
  progress.tensors[name] = tensor_of(values, at::kLong);
}

void put(StepProgress& progress, const std::string& name, const std::vector<double>& values) {
  progress.tensors[name] = tensor_of(values, at::kDouble);
}

void take(const StepProgress& progress, const std::string& name, at::Tensor& values) {
  const auto kept = progress.tensors.find(name);
  SWITCHYARD_CHECK(kept != progress.tensors.end(), ShapeError, "saved progress of a step has no '", name,
                   "'; it comes from another version, or is not one of StepBalance::progress()");
  SWITCHYARD_CHECK(kept->second.sizes() == values.sizes() && kept->second.scalar_type() == values.scalar_type(), ShapeError,
                   "saved progress of a step: '", name, "' is ", kept->second.scalar_type(), " ", kept->second.sizes(),
                   "; expected ", values.scalar_type(), " ", values.sizes(),
                   ". Resume with the config, the shape and the plan that the step began with");
  values.copy_(kept->second);
}

void take(const StepProgress& progress, const std::string& name, std::vector<bool>& flags) {
  take_numbers(progress, name, at::kBool, flags);
}

void take(const StepProgress& progress, const std::string& name, std::vector<int64_t>& values) {
  take_numbers(progress, name, at::kLong, values);
}

void take(const StepProgress& progress, const std::string& name, std::vector<double>& values) {
  take_numbers(progress, name, at::kDouble, values);
}

}  // namespace switchyard
