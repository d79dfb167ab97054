#include "switchyard/train/gradients.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <span>
#include <vector>

#include "switchyard/core/profile_scope.hpp"

namespace switchyard {
namespace {

/// Where a stretch of a bucket came from.
template <typename T>
struct Stretch {
  T* values = nullptr;
  int64_t count = 0;
};

template <typename T>
class Bucket {
 public:
  explicit Bucket(Communicator& comm) : comm_(comm) {}

  void add(T* values, int64_t count) {
    while (count > 0) {
      const int64_t fits = std::min(count, kBucketNumbers - std::ssize(numbers_));
      numbers_.insert(numbers_.end(), values, values + fits);
      stretches_.push_back({values, fits});
      values += fits;
      count -= fits;
      if (std::ssize(numbers_) == kBucketNumbers) sum();
    }
  }

  void sum() {
    if (numbers_.empty()) return;
    comm_.all_reduce_sum(std::span<T>(numbers_));
    const T* from = numbers_.data();
    for (const Stretch<T>& stretch : stretches_) {
      std::copy_n(from, stretch.count, stretch.values);
      from += stretch.count;
    }
    numbers_.clear();
    stretches_.clear();
  }

 private:
  Communicator& comm_;
  std::vector<T> numbers_;
  std::vector<Stretch<T>> stretches_;
};

}  // namespace

void sum_gradients(const ParameterRefs& parameters, Communicator& comm) {
  const at::NoGradGuard no_grad;
  const PartScope part("gradients over ranks");
  Bucket<float> floats(comm);
  Bucket<double> doubles(comm);
  for (Parameter* parameter : parameters) {
    if (parameter->training == Training::Frozen || is_sharded(*parameter)) continue;
    at::Tensor& grad = parameter->grad;
    // A gradient of one backward may still be in the compute type; ranks add up in that of the master.
    grad = grad.defined() ? grad.to(parameter->master.scalar_type()).contiguous() : at::zeros_like(parameter->master);
    if (grad.scalar_type() == at::kDouble) {
      doubles.add(grad.mutable_data_ptr<double>(), grad.numel());
    } else {
      floats.add(grad.mutable_data_ptr<float>(), grad.numel());
    }
  }
  floats.sum();
  doubles.sum();
}

}  // namespace switchyard
