#include "switchyard/kernels/adamw.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/halves.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"
#include "switchyard/kernels/weight_ops.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNumbersPerBlock = 4096;  // few enough that a sum in fp32 is good to 4e-6, even in four lanes

/// body(block, first number, how many)
template <typename Body>
void for_each_block_of_numbers(int64_t count, const Body& body) {
  const int64_t blocks = at::divup(count, kNumbersPerBlock);
  at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kNumbersPerBlock;
      body(block, begin, std::min(kNumbersPerBlock, count - begin));
    }
  });
}

void check_parts(const std::vector<at::Tensor>& parts) {
  SWITCHYARD_CHECK(!parts.empty(), ShapeError, "sum of parts: no tensors were given; expected at least one");
  const at::Tensor& model = parts.front();
  for (const at::Tensor& part : parts) {
    SWITCHYARD_CHECK(part.sizes() == model.sizes() && part.scalar_type() == model.scalar_type(), ShapeError,
                     "sum of parts: one tensor is ", model.scalar_type(), " ", model.sizes(), ", another ", part.scalar_type(), " ",
                     part.sizes(), "; expected one shape and one type");
  }
}

std::vector<at::Tensor> contiguous(const std::vector<at::Tensor>& parts) {
  std::vector<at::Tensor> result;
  for (const at::Tensor& part : parts) result.push_back(part.contiguous());
  return result;
}

/// Blocks of a tensor that is there in one piece.
template <typename Value>
class WholeBlocks {
 public:
  using Number = Value;
  explicit WholeBlocks(const at::Tensor& tensor) : data_(tensor.const_data_ptr<Value>()) {}
  template <typename Body>
  void with_block(int64_t begin, int64_t /*count*/, const Body& body) const {
    body(data_ + begin);
  }

 private:
  const Value* data_;
};

/// Blocks of the sum of several tensors, added up when they are asked for.
template <typename Value>
class SummedBlocks {
 public:
  using Number = WideOf<Value>;
  explicit SummedBlocks(const std::vector<at::Tensor>& parts) {
    for (const at::Tensor& part : parts) parts_.push_back(part.const_data_ptr<Value>());
  }
  template <typename Body>
  void with_block(int64_t begin, int64_t count, const Body& body) const {
    std::array<Number, kNumbersPerBlock> sum;
    row_ops<Value>().sum_rows(parts_.data(), std::ssize(parts_), begin, sum.data(), count);
    body(sum.data());
  }

 private:
  std::vector<const Value*> parts_;
};

/// body(blocks) with the blocks of the sum of `parts`, contiguous ones.
template <typename Body>
void with_blocks(const std::vector<at::Tensor>& parts, const Body& body) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, parts.front().scalar_type(), "blocks of a gradient", [&] {
    if (parts.size() == 1) {
      body(WholeBlocks<scalar_t>(parts.front()));
    } else {
      body(SummedBlocks<scalar_t>(parts));
    }
  });
}

void check_adamw(const AdamWTensors& t) {
  const bool in_halves = t.lower.defined();
  const at::ScalarType given = t.weight.scalar_type();
  SWITCHYARD_CHECK(in_halves ? given == at::kBFloat16 : given == at::kFloat || given == at::kDouble, ShapeError,
                   "adamw: weights are ", given, in_halves ? " with a lower half; expected BFloat16" : "; expected Float or Double");
  SWITCHYARD_CHECK(!in_halves || (t.lower.scalar_type() == at::kShort && t.lower.sizes() == t.weight.sizes() && t.lower.is_contiguous()),
                   ShapeError, "adamw: the lower half of the weights is unlike the upper one of ", t.weight.sizes(),
                   "; expected contiguous Short of that shape");
  const at::ScalarType type = wide_type(given);
  check_parts(t.gradient_parts);
  const at::Tensor& gradient = t.gradient_parts.front();
  SWITCHYARD_CHECK(wide_type(gradient.scalar_type()) == type && gradient.sizes() == t.weight.sizes(), ShapeError,
                   "adamw: the gradient is ", gradient.scalar_type(), " ", gradient.sizes(), " for weights of ", type, " ",
                   t.weight.sizes());
  for (const at::Tensor* moment : {&t.first, &t.second}) {
    SWITCHYARD_CHECK(wide_type(moment->scalar_type()) == type && moment->scalar_type() == t.first.scalar_type() &&
                         moment->sizes() == t.weight.sizes() && moment->is_contiguous(),
                     ShapeError, "adamw: a moment is ", moment->scalar_type(), " ", moment->sizes(), "; expected both ", type,
                     ", or both BFloat16 beside Float, ", t.weight.sizes(), ", contiguous");
  }
  SWITCHYARD_CHECK(t.weight.is_contiguous(), ShapeError, "adamw: weights of strides ", t.weight.strides(),
                   "; expected contiguous ones");
}

template <typename Wide>
AdamWNumbers<Wide> numbers_of(const AdamWFactors& f) {
  const auto as = [](double value) { return static_cast<Wide>(value); };
  return {as(f.gradient_scale), as(f.beta1), as(f.beta2), as(f.keep), as(f.rate), as(f.root_scale), as(f.epsilon),
          as(1.0 - f.beta1), as(1.0 - f.beta2)};
}

// Where the weights from a number on lie.
template <typename Wide>
WholeWeights<Wide> weights_from(const WholeWeights<Wide>& weights, int64_t number) {
  return {weights.weight + number};
}
HalfWeights weights_from(const HalfWeights& weights, int64_t number) { return {weights.upper + number, weights.lower + number}; }

/// Weights and moments, block by block, with moments of one type.
/// @param gradient  WholeBlocks or SummedBlocks
template <typename Moment, typename Gradient, typename Weights>
void update_moments(const Gradient& gradient, const Weights& weights,
                    typename AdamWOps<typename Gradient::Number>::template Update<Weights, Moment> update_block,
                    const AdamWTensors& tensors, const AdamWFactors& factors) {
  using Number = typename Gradient::Number;
  const AdamWNumbers<WideOf<Number>> numbers = numbers_of<WideOf<Number>>(factors);
  Moment* first = tensors.first.mutable_data_ptr<Moment>();
  Moment* second = tensors.second.mutable_data_ptr<Moment>();
  for_each_block_of_numbers(tensors.weight.numel(), [&](int64_t, int64_t begin, int64_t count) {
    gradient.with_block(begin, count, [&](const Number* g) {
      update_block(weights_from(weights, begin), g, first + begin, second + begin, count, numbers);
    });
  });
}

/// Chooses by how weights and moments are kept.
template <typename Gradient>
void update_all(const Gradient& gradient, const AdamWTensors& tensors, const AdamWFactors& factors) {
  using Number = typename Gradient::Number;
  using Wide = WideOf<Number>;
  using Half = c10::BFloat16;
  const AdamWOps<Number>& ops = adamw_ops<Number>();
  const bool half_moments = tensors.first.scalar_type() == at::kBFloat16;
  if (tensors.lower.defined()) {
    const HalfWeights weights{tensors.weight.mutable_data_ptr<Half>(), tensors.lower.mutable_data_ptr<int16_t>()};
    if (half_moments) return update_moments<Half>(gradient, weights, ops.halves_half_moments, tensors, factors);
    return update_moments<Wide>(gradient, weights, ops.halves, tensors, factors);
  }
  const WholeWeights<Wide> weights{tensors.weight.mutable_data_ptr<Wide>()};
  if (half_moments) return update_moments<Half>(gradient, weights, ops.whole_half_moments, tensors, factors);
  return update_moments<Wide>(gradient, weights, ops.whole, tensors, factors);
}

}  // namespace

at::Tensor wide_sum(const std::vector<at::Tensor>& parts) {
  check_parts(parts);
  const c10::NoGradGuard no_grad;
  at::Tensor sum = parts.front().to(wide_type(parts.front().scalar_type()), /*non_blocking=*/false, /*copy=*/true);
  for (size_t i = 1; i < parts.size(); ++i) sum.add_(parts[i]);
  return sum;
}

void adamw_update_reference(const AdamWTensors& tensors, const AdamWFactors& factors) {
  check_adamw(tensors);
  const c10::NoGradGuard no_grad;
  const at::Tensor weight = tensors.lower.defined() ? joined_halves(tensors.weight, tensors.lower) : tensors.weight;
  const at::Tensor g = wide_sum(tensors.gradient_parts).mul(factors.gradient_scale);
  const at::Tensor first = tensors.first.to(g.scalar_type()).mul(factors.beta1).add_(g, 1.0 - factors.beta1);
  const at::Tensor second = tensors.second.to(g.scalar_type()).mul(factors.beta2).add_(g.square(), 1.0 - factors.beta2);
  const at::Tensor root = second.sqrt().mul(factors.root_scale).add(factors.epsilon);
  weight.mul_(factors.keep).sub_(first.div(root), factors.rate);
  tensors.first.copy_(first);
  tensors.second.copy_(second);
  if (tensors.lower.defined()) split_halves(weight, tensors.weight, tensors.lower);
}

void adamw_update(const AdamWTensors& tensors, const AdamWFactors& factors) {
  const KernelScope profiled("adamw");
  check_adamw(tensors);
  if (!tensors.weight.is_cpu()) return adamw_update_reference(tensors, factors);
  const c10::NoGradGuard no_grad;
  with_blocks(contiguous(tensors.gradient_parts), [&](const auto& gradient) { update_all(gradient, tensors, factors); });
  // Autograd must see that what an earlier forward saved has changed.
  tensors.weight.unsafeGetTensorImpl()->bump_version();
}

double sum_of_squares(const std::vector<at::Tensor>& parts) {
  const KernelScope profiled("sum of squares");
  check_parts(parts);
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> here;
  for (const at::Tensor& part : parts) here.push_back(part.to(at::kCPU));
  const int64_t numbers = here.front().numel();
  std::vector<double> sums(static_cast<size_t>(at::divup(numbers, kNumbersPerBlock)));
  with_blocks(contiguous(here), [&](const auto& values) {
    using Number = typename std::decay_t<decltype(values)>::Number;
    for_each_block_of_numbers(numbers, [&](int64_t block, int64_t at, int64_t count) {
      values.with_block(at, count, [&](const Number* data) {
        sums[static_cast<size_t>(block)] = static_cast<double>(row_ops<Number>().sum_of_squares(data, count));
      });
    });
  });
  double sum = 0.0;
  for (const double part : sums) sum += part;
  return sum;
}

}  // namespace switchyard
