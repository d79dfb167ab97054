#include "switchyard/kernels/accumulate.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

constexpr int64_t kNumbersPerTask = 16384;

// Where the rows of a tensor begin, rows counted over all dimensions but the last.
int64_t row_offset(const at::Tensor& tensor, int64_t row) {
  int64_t offset = 0;
  for (int64_t dim = tensor.dim() - 2; dim >= 0; --dim) {
    offset += row % tensor.size(dim) * tensor.stride(dim);
    row /= tensor.size(dim);
  }
  return offset;
}

}  // namespace

void accumulate(const at::Tensor& sum, const at::Tensor& values) {
  SWITCHYARD_CHECK(sum.dim() >= 1 && sum.sizes() == values.sizes() && sum.scalar_type() == wide_type(values.scalar_type()),
                   ShapeError, "accumulate: the sum is ", sum.scalar_type(), " ", sum.sizes(), ", the values are ",
                   values.scalar_type(), " ", values.sizes(), "; expected one shape, and the wide type of the values");
  SWITCHYARD_CHECK(sum.stride(-1) == 1 || sum.size(-1) <= 1, ShapeError, "accumulate: the sum has strides ", sum.strides(),
                   "; expected 1 in the last dimension");
  const c10::NoGradGuard no_grad;
  if (sum.numel() == 0) return;
  if (!sum.is_cpu()) {
    sum.add_(values);
    return;
  }
  const KernelScope profiled("accumulate");
  const at::Tensor addend = values.contiguous();
  const bool flat = sum.is_contiguous();
  const int64_t width = flat ? std::min(sum.numel(), kNumbersPerTask) : sum.size(-1);
  const int64_t rows = at::divup(sum.numel(), width);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, addend.scalar_type(), "accumulate", [&] {
    using Wide = WideOf<scalar_t>;
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    Wide* to = sum.mutable_data_ptr<Wide>();
    const scalar_t* from = addend.const_data_ptr<scalar_t>();
    at::parallel_for(0, rows, std::max<int64_t>(1, kNumbersPerTask / width), [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        const int64_t count = std::min(width, sum.numel() - row * width);
        ops.add_scaled(to + (flat ? row * width : row_offset(sum, row)), from + row * width, Wide(1), count);
      }
    });
  });
}

}  // namespace switchyard
