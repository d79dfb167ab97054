#include "switchyard/kernels/embedding.hpp"

#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

struct EmbedFunction : torch::autograd::Function<EmbedFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& table_VD,
                            const at::Tensor& ids_T, at::ScalarType type) {
    const KernelScope profiled("embedding");
    context->save_for_backward({ids_T});
    context->saved_data["rows"] = table_VD.size(0);
    context->saved_data["type"] = table_VD.scalar_type();
    return at::index_select(table_VD, 0, ids_T).to(type);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const KernelScope profiled("embedding backward");
    const at::Tensor ids_T = context->get_saved_variables()[0];
    const at::Tensor& d_out_TD = gradients[0];
    const at::ScalarType type = context->saved_data["type"].toScalarType();
    const at::ScalarType wide = wide_type(type);
    at::Tensor d_table_VD = at::zeros({context->saved_data["rows"].toInt(), d_out_TD.size(1)}, wide);
    d_table_VD.index_add_(0, ids_T, d_out_TD.to(wide));
    return {d_table_VD.to(type), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& ids_T, at::ScalarType type) {
  SWITCHYARD_CHECK(ids_T.dim() == 1 && ids_T.scalar_type() == at::kLong, ShapeError, "embed: ids have shape ",
                   ids_T.sizes(), " and type ", ids_T.scalar_type(), "; expected int64 [T]");
  SWITCHYARD_CHECK(table_VD.dim() == 2, ShapeError, "embed: the table has shape ", table_VD.sizes(), "; expected [V, D]");
  if (ids_T.numel() > 0) {
    const int64_t lowest = ids_T.min().item<int64_t>();
    const int64_t highest = ids_T.max().item<int64_t>();
    SWITCHYARD_CHECK(lowest >= 0 && highest < table_VD.size(0), ShapeError, "embed: ids from ", lowest, " to ", highest,
                     "; expected 0 to ", table_VD.size(0) - 1);
  }
  return EmbedFunction::apply(table_VD, ids_T, type);
}

}  // namespace switchyard
