#include "switchyard/kernels/adamw.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNumbersPerBlock = 4096;  // few enough that a sum in fp32 is good to 1e-6

/// body(block, first number, how many)
template <typename Body>
void for_each_block_of_numbers(int64_t count, const Body& body) {
  const int64_t blocks = (count + kNumbersPerBlock - 1) / kNumbersPerBlock;
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kNumbersPerBlock;
      body(block, begin, std::min(kNumbersPerBlock, count - begin));
    }
  });
}

void check_adamw(const AdamWTensors& t) {
  const at::ScalarType type = t.weight.scalar_type();
  SWITCHYARD_CHECK(type == at::kFloat || type == at::kDouble, ShapeError, "adamw: weights are ", type,
                   "; expected Float or Double");
  SWITCHYARD_CHECK(wide_type(t.gradient.scalar_type()) == type && t.gradient.sizes() == t.weight.sizes(), ShapeError,
                   "adamw: the gradient is ", t.gradient.scalar_type(), " ", t.gradient.sizes(), " for weights of ", type, " ",
                   t.weight.sizes());
  for (const at::Tensor* moment : {&t.first, &t.second}) {
    SWITCHYARD_CHECK(wide_type(moment->scalar_type()) == type && moment->scalar_type() == t.first.scalar_type() &&
                         moment->sizes() == t.weight.sizes() && moment->is_contiguous(),
                     ShapeError, "adamw: a moment is ", moment->scalar_type(), " ", moment->sizes(), "; expected both ", type,
                     ", or both BFloat16 beside Float, ", t.weight.sizes(), ", contiguous");
  }
  SWITCHYARD_CHECK(t.weight.is_contiguous(), ShapeError, "adamw: weights of strides ", t.weight.strides(),
                   "; expected contiguous ones");
  if (!t.compute.defined()) return;
  const at::ScalarType compute = t.compute.scalar_type();
  SWITCHYARD_CHECK(t.compute.sizes() == t.weight.sizes() && t.compute.is_contiguous() &&
                       (compute == type || (compute == at::kBFloat16 && type == at::kFloat)),
                   ShapeError, "adamw: the copy to compute with is ", compute, " ", t.compute.sizes(), "; expected ", type,
                   " or BFloat16 beside Float, ", t.weight.sizes(), ", contiguous");
}

template <typename Wide>
AdamWNumbers<Wide> numbers_of(const AdamWFactors& f) {
  const auto as = [](double value) { return static_cast<Wide>(value); };
  return {as(f.gradient_scale), as(f.beta1), as(f.beta2), as(f.keep), as(f.rate), as(f.root_scale), as(f.epsilon)};
}

}  // namespace

void adamw_update_reference(const AdamWTensors& tensors, const AdamWFactors& factors) {
  check_adamw(tensors);
  const c10::NoGradGuard no_grad;
  const at::Tensor g = tensors.gradient.to(tensors.weight.scalar_type()).mul(factors.gradient_scale);
  const at::Tensor first = tensors.first.to(g.scalar_type()).mul(factors.beta1).add_(g, 1.0 - factors.beta1);
  const at::Tensor second = tensors.second.to(g.scalar_type()).mul(factors.beta2).add_(g.square(), 1.0 - factors.beta2);
  const at::Tensor root = second.sqrt().mul(factors.root_scale).add(factors.epsilon);
  tensors.weight.mul_(factors.keep).sub_(first.div(root), factors.rate);
  tensors.first.copy_(first);
  tensors.second.copy_(second);
  if (tensors.compute.defined()) tensors.compute.copy_(tensors.weight);
}

void adamw_update(const AdamWTensors& tensors, const AdamWFactors& factors) {
  const KernelScope profiled("adamw");
  check_adamw(tensors);
  if (!tensors.weight.is_cpu()) return adamw_update_reference(tensors, factors);
  const c10::NoGradGuard no_grad;
  const at::Tensor gradient = tensors.gradient.contiguous();
  const bool rounds = tensors.compute.defined() && tensors.compute.scalar_type() == at::kBFloat16;
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, gradient.scalar_type(), "adamw", [&] {
    using Wide = WideOf<scalar_t>;
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const AdamWNumbers<Wide> numbers = numbers_of<Wide>(factors);
    Wide* weight = tensors.weight.mutable_data_ptr<Wide>();
    const scalar_t* g = gradient.const_data_ptr<scalar_t>();
    c10::BFloat16* rounded = rounds ? tensors.compute.mutable_data_ptr<c10::BFloat16>() : nullptr;
    const auto update = [&](const auto& update_block, auto* first, auto* second) {
      for_each_block_of_numbers(gradient.numel(), [&](int64_t, int64_t at, int64_t count) {
        update_block(weight + at, g + at, first + at, second + at, rounded ? rounded + at : nullptr, count, numbers);
      });
    };
    if (tensors.first.scalar_type() == at::kBFloat16) {
      update(ops.adamw_half_moments, tensors.first.mutable_data_ptr<c10::BFloat16>(),
             tensors.second.mutable_data_ptr<c10::BFloat16>());
    } else {
      update(ops.adamw, tensors.first.mutable_data_ptr<Wide>(), tensors.second.mutable_data_ptr<Wide>());
    }
  });
  // Autograd must see that what an earlier forward saved has changed.
  tensors.weight.unsafeGetTensorImpl()->bump_version();
  if (rounds) tensors.compute.unsafeGetTensorImpl()->bump_version();
}

double sum_of_squares(const at::Tensor& values) {
  const KernelScope profiled("sum of squares");
  const c10::NoGradGuard no_grad;
  const at::Tensor all = values.to(at::kCPU).contiguous();
  std::vector<double> sums(static_cast<size_t>((all.numel() + kNumbersPerBlock - 1) / kNumbersPerBlock));
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, all.scalar_type(), "sum_of_squares", [&] {
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    const scalar_t* data = all.const_data_ptr<scalar_t>();
    for_each_block_of_numbers(all.numel(), [&](int64_t block, int64_t at, int64_t count) {
      sums[static_cast<size_t>(block)] = static_cast<double>(ops.sum_of_squares(data + at, count));
    });
  });
  double sum = 0.0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace switchyard
