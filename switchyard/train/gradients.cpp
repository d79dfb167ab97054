#include "switchyard/train/gradients.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <span>
#include <vector>

#include "switchyard/core/profile_scope.hpp"
#include "switchyard/train/update_shares.hpp"

namespace switchyard {
namespace {

// Tensors smaller than this travel together; to copy larger ones together would take longer than to send them.
constexpr int64_t kAlone = int64_t{1} << 14;

template <typename T>
class GradientSums {
 public:
  explicit GradientSums(Communicator& comm) : comm_(comm) {}

  void add(std::span<T> values) {
    if (std::ssize(values) < kAlone) {
      together_.push_back(values);
      return;
    }
    for (size_t begin = 0; begin < values.size(); begin += kMessageNumbers) {
      comm_.all_reduce_sum(values.subspan(begin, std::min<size_t>(kMessageNumbers, values.size() - begin)));
    }
  }

  void sum_small() {
    std::vector<T> numbers;
    for (const std::span<T> values : together_) numbers.insert(numbers.end(), values.begin(), values.end());
    if (numbers.empty()) return;
    comm_.all_reduce_sum(std::span<T>(numbers));
    const T* from = numbers.data();
    for (const std::span<T> values : together_) {
      std::copy_n(from, values.size(), values.begin());
      from += values.size();
    }
  }

 private:
  Communicator& comm_;
  std::vector<std::span<T>> together_;
};

template <typename T>
std::span<T> numbers_of(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

}  // namespace

void sum_gradients(const ParameterRefs& parameters, Communicator& comm) {
  if (comm.size() == 1) return;  // and is no part of a profile
  const at::NoGradGuard no_grad;
  const PartScope part("gradients over ranks");
  exchange_rows(parameters, comm);
  GradientSums<float> floats(comm);
  GradientSums<double> doubles(comm);
  for (Parameter* parameter : parameters) {
    if (parameter->training == Training::Frozen || is_sharded(*parameter) || shares_update(*parameter)) continue;
    at::Tensor& grad = parameter->grad;
    // A gradient of one backward may still be in the compute type; ranks add up in that of the master.
    const at::ScalarType type = master_type(*parameter);
    grad = grad.defined() ? grad.to(type).contiguous() : at::zeros(sizes_of(*parameter), type);
    if (grad.scalar_type() == at::kDouble) {
      doubles.add(numbers_of<double>(grad));
    } else {
      floats.add(numbers_of<float>(grad));
    }
  }
  floats.sum_small();
  doubles.sum_small();
}

void add_to_gradient(Parameter& parameter, const at::Tensor& gradient) {
  const at::NoGradGuard no_grad;
  if (!parameter.grad_parts.empty()) {
    // The sum of the parts counts, so one part is enough to add to; in the master's type, for bf16 would lose what is small.
    const at::Tensor rows = updated_rows(parameter, gradient);
    for (at::Tensor& part : parameter.grad_parts) part = part.to(master_type(parameter));
    parameter.grad_parts.front() = parameter.grad_parts.front().add(rows);
  } else {
    parameter.grad = parameter.grad.defined() ? parameter.grad.to(master_type(parameter)).add(gradient) : gradient;
  }
}

}  // namespace switchyard
