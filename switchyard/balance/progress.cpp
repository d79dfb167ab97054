#include "switchyard/balance/progress.hpp"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

template <typename Number>
at::Tensor tensor_for(const std::vector<Number>& values) {
  return at::empty({std::ssize(values)}, c10::CppTypeToScalarType<Number>::value);
}

}  // namespace

void put(StepProgress& progress, const std::string& name, const at::Tensor& values) {
  if (values.defined()) progress.tensors[name] = values.clone();
}

template <typename Number>
void put(StepProgress& progress, const std::string& name, const std::vector<Number>& values) {
  at::Tensor kept = tensor_for(values);
  std::copy(values.begin(), values.end(), kept.mutable_data_ptr<Number>());
  progress.tensors[name] = kept;
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

template <typename Number>
void take(const StepProgress& progress, const std::string& name, std::vector<Number>& values) {
  at::Tensor kept = tensor_for(values);
  take(progress, name, kept);
  std::copy_n(kept.const_data_ptr<Number>(), values.size(), values.begin());
}

template void put(StepProgress&, const std::string&, const std::vector<bool>&);
template void put(StepProgress&, const std::string&, const std::vector<int64_t>&);
template void put(StepProgress&, const std::string&, const std::vector<double>&);
template void take(const StepProgress&, const std::string&, std::vector<bool>&);
template void take(const StepProgress&, const std::string&, std::vector<int64_t>&);
template void take(const StepProgress&, const std::string&, std::vector<double>&);

}  // namespace switchyard
