#include "switchyard/kernels/halves.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/weight_ops.hpp"

namespace switchyard {
namespace {

constexpr int64_t kHalvesPerTask = 32768;

void check_halves(const at::Tensor& whole, const at::Tensor& upper, const at::Tensor& lower) {
  const bool types = whole.scalar_type() == at::kFloat && upper.scalar_type() == at::kBFloat16 && lower.scalar_type() == at::kShort;
  SWITCHYARD_CHECK(types && whole.sizes() == upper.sizes() && whole.sizes() == lower.sizes(), ShapeError, "halves: the whole is ",
                   whole.scalar_type(), " ", whole.sizes(), ", the upper half ", upper.scalar_type(), " ", upper.sizes(),
                   ", the lower ", lower.scalar_type(), " ", lower.sizes(), "; expected Float, BFloat16 and Short of one shape");
  SWITCHYARD_CHECK(whole.is_contiguous() && upper.is_contiguous() && lower.is_contiguous(), ShapeError, "halves: strides ",
                   whole.strides(), ", ", upper.strides(), ", ", lower.strides(), "; expected contiguous tensors");
}

}  // namespace

void split_halves_reference(const at::Tensor& whole, const at::Tensor& upper, const at::Tensor& lower) {
  const c10::NoGradGuard no_grad;
  check_halves(whole, upper, lower);
  const at::Tensor bits = whole.view(at::kInt);
  const at::Tensor low = bits.bitwise_and(0xFFFF);
  upper.copy_(bits.add(0x8000).__rshift__(16).to(at::kShort).view(at::kBFloat16));
  lower.copy_(low.sub(low.ge(0x8000).to(at::kInt).mul(0x10000)));  // the same bits as a number with a sign
}

at::Tensor joined_halves_reference(const at::Tensor& upper, const at::Tensor& lower) {
  const c10::NoGradGuard no_grad;
  const at::Tensor low = lower.to(at::kInt);
  // Where the lower half is negative the upper one was rounded up, and adding a negative number takes that back.
  return upper.detach().view(at::kShort).to(at::kInt).mul(0x10000).add(low).view(at::kFloat);
}

void split_halves(const at::Tensor& whole, const at::Tensor& upper, const at::Tensor& lower) {
  const c10::NoGradGuard no_grad;
  if (!whole.is_cpu()) return split_halves_reference(whole, upper, lower);
  check_halves(whole, upper, lower);
  const float* from = whole.const_data_ptr<float>();
  const HalfWeights to{upper.mutable_data_ptr<c10::BFloat16>(), lower.mutable_data_ptr<int16_t>()};
  at::parallel_for(0, whole.numel(), kHalvesPerTask, [&](int64_t begin, int64_t end) {
    halves_ops().split(from + begin, {to.upper + begin, to.lower + begin}, end - begin);
  });
  upper.unsafeGetTensorImpl()->bump_version();
}

at::Tensor joined_halves(const at::Tensor& upper, const at::Tensor& lower) {
  if (!upper.is_cpu()) return joined_halves_reference(upper, lower);
  const c10::NoGradGuard no_grad;
  at::Tensor whole = at::empty(upper.sizes(), upper.options().dtype(at::kFloat).requires_grad(false));
  check_halves(whole, upper, lower);
  float* to = whole.mutable_data_ptr<float>();
  // join() reads only.
  const HalfWeights from{const_cast<c10::BFloat16*>(upper.const_data_ptr<c10::BFloat16>()),
                         const_cast<int16_t*>(lower.const_data_ptr<int16_t>())};
  at::parallel_for(0, whole.numel(), kHalvesPerTask, [&](int64_t begin, int64_t end) {
    halves_ops().join({from.upper + begin, from.lower + begin}, to + begin, end - begin);
  });
  return whole;
}

}  // namespace switchyard
