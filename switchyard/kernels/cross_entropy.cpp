#include "switchyard/kernels/cross_entropy.hpp"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/accumulate.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/tile_outer.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Logits of a chunk stay in the second-level cache of a few cores and are still large enough for the GEMM.
constexpr int64_t kChunkTokens = 512;

void check_head(const at::Tensor& hidden_TD, const at::Tensor& head_VD, const at::Tensor& targets_T, int64_t ignored) {
  SWITCHYARD_CHECK(hidden_TD.dim() == 2 && head_VD.dim() == 2 && hidden_TD.size(1) == head_VD.size(1) &&
                       hidden_TD.scalar_type() == head_VD.scalar_type(),
                   ShapeError, "cross-entropy: hidden has shape ", hidden_TD.sizes(), " and type ",
                   hidden_TD.scalar_type(), ", head ", head_VD.sizes(), " and ", head_VD.scalar_type(),
                   "; expected [T, D] and [V, D] of one type");
  SWITCHYARD_CHECK(targets_T.dim() == 1 && targets_T.scalar_type() == at::kLong && targets_T.size(0) == hidden_TD.size(0),
                   ShapeError, "cross-entropy: targets have shape ", targets_T.sizes(), " and type ",
                   targets_T.scalar_type(), "; expected int64 [", hidden_TD.size(0), "]");
  const at::Tensor targets = targets_T.contiguous();
  const int64_t* values = targets.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < targets.numel(); ++t) {
    SWITCHYARD_CHECK(values[t] == ignored || (values[t] >= 0 && values[t] < head_VD.size(0)), ShapeError,
                     "cross-entropy: token ", t, " has target ", values[t], "; expected 0 to ", head_VD.size(0) - 1,
                     " or ", ignored, " for none");
  }
}

// Tokens with a target, as rows without gaps.
struct Scored {
  at::Tensor index_N;  // undefined: all tokens
  at::Tensor hidden_ND;
  at::Tensor targets_N;
};

Scored scored_tokens(const at::Tensor& hidden_TD, const at::Tensor& targets_T, int64_t ignored) {
  const at::Tensor scored_T = targets_T.ne(ignored);
  if (scored_T.all().item<bool>()) return {at::Tensor(), hidden_TD.contiguous(), targets_T.contiguous()};
  const at::Tensor index_N = at::nonzero(scored_T).squeeze(1);
  return {index_N, at::index_select(hidden_TD, 0, index_N), at::index_select(targets_T, 0, index_N)};
}

enum class Logits { Keep, MakeGradient };

// Losses of a chunk; the logits become softmax - one_hot where asked.
at::Tensor chunk_losses(at::Tensor& logits_CV, const at::Tensor& targets_C, Logits logits) {
  const KernelScope profiled("cross-entropy of logits");
  constexpr int64_t kRowsPerTask = 8;
  const int64_t vocabulary = logits_CV.size(1);
  at::Tensor losses_C = at::empty(targets_C.sizes(), wide_type(logits_CV.scalar_type()));
  const int64_t* targets = targets_C.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, logits_CV.scalar_type(), "cross_entropy", [&] {
    const RowOps<scalar_t>& ops = row_ops<scalar_t>();
    scalar_t* rows = logits_CV.mutable_data_ptr<scalar_t>();
    WideOf<scalar_t>* losses = losses_C.mutable_data_ptr<WideOf<scalar_t>>();
    at::parallel_for(0, targets_C.numel(), kRowsPerTask, [&](int64_t begin, int64_t end) {
      std::vector<WideOf<scalar_t>> scratch(static_cast<size_t>(logits == Logits::MakeGradient ? vocabulary : 0));
      for (int64_t row = begin; row < end; ++row) {
        scalar_t* values = rows + row * vocabulary;
        losses[row] = logits == Logits::MakeGradient
                          ? ops.cross_entropy_gradient(values, scratch.data(), vocabulary, targets[row])
                          : ops.cross_entropy(values, vocabulary, targets[row]);
      }
    });
  });
  return losses_C;
}

template <typename Body>
void for_each_chunk(int64_t num_rows, const Body& body) {
  for (int64_t begin = 0; begin < num_rows; begin += kChunkTokens) body(begin, std::min(kChunkTokens, num_rows - begin));
}

// The backward needs the loss's own gradient as a factor only, so everything else is done while the logits are at hand.
struct HeadFunction : torch::autograd::Function<HeadFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden_TD, const at::Tensor& head_VD,
                            const at::Tensor& targets_T, int64_t ignored) {
    const at::ScalarType wide = wide_type(hidden_TD.scalar_type());
    const Scored scored = scored_tokens(hidden_TD, targets_T, ignored);
    // Not needs_input_grad(): in a layer that runs again within a backward it says what that backward asks of its own graph, of
    // which this node is no part.
    const bool hidden_trained = hidden_TD.requires_grad();
    const bool head_trained = head_VD.requires_grad();
    at::Tensor d_hidden_ND = hidden_trained ? at::empty_like(scored.hidden_ND) : at::Tensor();
    // By tiles [D, V], a sum in fp32; else [V, D], a sum of rounded parts.
    const bool by_tiles = has_tile_outer(scored.hidden_ND);
    at::Tensor d_head;
    double loss = 0.0;
    for_each_chunk(scored.targets_N.size(0), [&](int64_t begin, int64_t size) {
      const at::Tensor rows_CD = scored.hidden_ND.narrow(0, begin, size);
      at::Tensor logits_CV = at::mm(rows_CD, head_VD.t());
      const at::Tensor losses_C = chunk_losses(logits_CV, scored.targets_N.narrow(0, begin, size), Logits::MakeGradient);
      loss += losses_C.sum(at::kDouble).item<double>();
      if (hidden_trained) {
        at::Tensor out = d_hidden_ND.narrow(0, begin, size);
        at::mm_out(out, logits_CV, head_VD);
      }
      if (!head_trained) return;
      if (by_tiles) {
        const TileSum sum = d_head.defined() ? TileSum::Add : TileSum::Overwrite;
        if (!d_head.defined()) d_head = make_outer_sum(head_VD.size(1), head_VD.size(0));
        add_tile_outer(d_head, rows_CD, logits_CV, sum);
        return;
      }
      const at::Tensor part_VD = at::mm(logits_CV.t(), rows_CD);
      if (d_head.defined()) {
        accumulate(d_head, part_VD);
      } else {
        d_head = part_VD.to(wide);
      }
    });
    const bool any = d_head.defined();
    if (head_trained && !any) d_head = at::zeros(head_VD.sizes(), wide);  // no target anywhere
    context->save_for_backward({d_hidden_ND, d_head, scored.index_N});
    context->saved_data["transposed"] = by_tiles && any;
    context->saved_data["tokens"] = hidden_TD.size(0);
    context->saved_data["head_type"] = head_VD.scalar_type();
    return at::empty({}, wide).fill_(loss);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("linear_cross_entropy", "linear_cross_entropy_reference()");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &d_hidden_ND = saved[0], &d_head_sum = saved[1], &index_N = saved[2];
    at::Tensor d_hidden_TD, d_head_VD;
    if (d_hidden_ND.defined()) {
      d_hidden_TD = at::mul(d_hidden_ND, gradients[0]);
      if (index_N.defined()) {
        const int64_t num_tokens = context->saved_data["tokens"].toInt();
        const at::Tensor all_TD = at::zeros({num_tokens, d_hidden_ND.size(1)}, d_hidden_ND.options());
        d_hidden_TD = all_TD.index_copy(0, index_N, d_hidden_TD);
      }
    }
    if (d_head_sum.defined()) {
      const at::ScalarType head_type = context->saved_data["head_type"].toScalarType();
      d_head_VD = context->saved_data["transposed"].toBool()
                      ? scaled_transpose(d_head_sum, gradients[0].item<double>(), head_type)
                      : at::mul(d_head_sum, gradients[0]).to(head_type);
    }
    return {d_hidden_TD, d_head_VD, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_token_losses(const at::Tensor& hidden_TD, const at::Tensor& head_VD, const at::Tensor& targets_T,
                               int64_t ignored) {
  check_head(hidden_TD, head_VD, targets_T, ignored);
  const c10::NoGradGuard no_grad;
  const Scored scored = scored_tokens(hidden_TD, targets_T, ignored);
  at::Tensor losses_N = at::empty({scored.targets_N.size(0)}, wide_type(hidden_TD.scalar_type()));
  for_each_chunk(losses_N.size(0), [&](int64_t begin, int64_t size) {
    at::Tensor logits_CV = at::mm(scored.hidden_ND.narrow(0, begin, size), head_VD.t());
    losses_N.narrow(0, begin, size)
        .copy_(chunk_losses(logits_CV, scored.targets_N.narrow(0, begin, size), Logits::Keep));
  });
  if (!scored.index_N.defined()) return losses_N;
  return at::zeros({hidden_TD.size(0)}, losses_N.options()).index_copy_(0, scored.index_N, losses_N);
}

at::Tensor linear_cross_entropy(const at::Tensor& hidden_TD, const at::Tensor& head_VD, const at::Tensor& targets_T,
                                int64_t ignored) {
  const bool differentiated = c10::GradMode::is_enabled() && (hidden_TD.requires_grad() || head_VD.requires_grad());
  if (!differentiated) {
    const at::Tensor losses_T = linear_token_losses(hidden_TD, head_VD, targets_T, ignored);
    return losses_T.sum(at::kDouble).to(losses_T.scalar_type());
  }
  check_head(hidden_TD, head_VD, targets_T, ignored);
  return HeadFunction::apply(hidden_TD, head_VD, targets_T, ignored);
}

at::Tensor linear_cross_entropy_reference(const at::Tensor& hidden_TD, const at::Tensor& head_VD,
                                          const at::Tensor& targets_T, int64_t ignored) {
  check_head(hidden_TD, head_VD, targets_T, ignored);
  const Scored scored = scored_tokens(hidden_TD, targets_T, ignored);
  const at::Tensor logits_NV = at::mm(scored.hidden_ND, head_VD.t()).to(wide_type(hidden_TD.scalar_type()));
  const at::Tensor target_N = at::gather(logits_NV, 1, scored.targets_N.unsqueeze(1)).squeeze(1);
  return at::logsumexp(logits_NV, {1}).sub(target_N).sum();
}

}  // namespace switchyard
