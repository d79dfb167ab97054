#include "switchyard/kernels/router_scores.hpp"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/topk.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/parallel_operations.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/row_ops.hpp"
#include "switchyard/kernels/scratch.hpp"
#include "switchyard/kernels/tile_panels.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTokens = 512;    // that a product of the weight's gradient sums over
constexpr int64_t kMostParts = 16;  // sums of the weight's gradient before they are added up; the same for any number of threads

// body(begin, end) in parallel over tokens; every begin is a multiple of `unit`.
template <typename Body>
void for_each_range(int64_t num_tokens, int64_t unit, const Body& body) {
  parallel_operations(at::divup(num_tokens, unit), [&](int64_t first, int64_t last) {
    body(first * unit, std::min(last * unit, num_tokens));
  });
}

// The rows in fp32, filled up with zeros: products then have one size.
template <typename Value>
MatrixView<const float> filled_up(const Value* rows, int64_t count, const MatrixView<float>& to) {
  for (int64_t row = 0; row < count; ++row) {
    const Value* const from = rows + row * to.columns;
    row_ops<Value>().sum_rows(&from, 1, 0, to.data + row * to.leading, to.columns);
  }
  for (int64_t row = count; row < to.rows; ++row) std::fill_n(to.data + row * to.leading, to.columns, 0.0F);
  return {to.data, to.rows, to.columns, to.leading};
}

template <typename Value>
void multiply_by_weight(const Value* hidden_TD, const at::Tensor& weight_ED, const at::Tensor& scores_TE) {
  const int64_t experts = weight_ED.size(0), width = weight_ED.size(1), leading = padded_floats(width);
  Scratch<float> shared(Panels<float>::numbers(width, experts));
  Panels<float> weight_t(shared.take(Panels<float>::numbers(width, experts)), width, experts);
  weight_t.take_transposed({weight_ED.const_data_ptr<float>(), experts, width, width});
  float* const scores = scores_TE.mutable_data_ptr<float>();
  for_each_range(scores_TE.size(0), kTileRows, [&](int64_t begin, int64_t end) {
    const TileProducts products;
    Scratch<float> scratch(kTileRows * leading);
    const MatrixView<float> block{scratch.take(kTileRows * leading), kTileRows, width, leading};
    for (int64_t token = begin; token < end; token += kTileRows) {
      const int64_t rows = std::min(kTileRows, end - token);
      multiply(filled_up(hidden_TD + token * width, rows, block), weight_t, {scores + token * experts, rows, experts, experts});
    }
  });
}

template <typename Value>
void hidden_gradient(const at::Tensor& weight_ED, const at::Tensor& d_scores_TE, Value* d_hidden_TD) {
  const int64_t experts = weight_ED.size(0), width = weight_ED.size(1), leading = padded_floats(width);
  Scratch<float> shared(Panels<float>::numbers(experts, width));
  Panels<float> weight(shared.take(Panels<float>::numbers(experts, width)), experts, width);
  weight.take({weight_ED.const_data_ptr<float>(), experts, width, width});
  const float* const d_scores = d_scores_TE.const_data_ptr<float>();
  for_each_range(d_scores_TE.size(0), kTileRows, [&](int64_t begin, int64_t end) {
    const TileProducts products;
    Scratch<float> scratch(kTileRows * (experts + leading));
    const MatrixView<float> last{scratch.take(kTileRows * experts), kTileRows, experts, experts};
    float* const sums = scratch.take(kTileRows * leading);
    for (int64_t token = begin; token < end; token += kTileRows) {
      const int64_t rows = std::min(kTileRows, end - token);
      const float* const from = d_scores + token * experts;
      const MatrixView<const float> left =
          rows == kTileRows ? MatrixView<const float>{from, rows, experts, experts} : filled_up(from, rows, last);
      multiply(left, weight, {sums, kTileRows, width, leading}, TileSum::Overwrite);
      for (int64_t row = 0; row < rows; ++row) {
        row_ops<Value>().store(sums + row * leading, d_hidden_TD + (token + row) * width, width);
      }
    }
  });
}

template <typename Value>
at::Tensor weight_gradient(const Value* hidden_TD, const at::Tensor& d_scores_TE, int64_t width) {
  constexpr int64_t kColumns = kTokens + kPadFloats;
  const int64_t tokens = d_scores_TE.size(0), experts = d_scores_TE.size(1), leading = padded_floats(width);
  const int64_t tokens_of_part = rounded_up(at::divup(std::max<int64_t>(tokens, 1), kMostParts), kTokens);
  const float* const d_scores = d_scores_TE.const_data_ptr<float>();
  at::Tensor parts_GED = at::empty({at::divup(tokens, tokens_of_part), experts, width}, at::kFloat);
  float* const parts = parts_GED.mutable_data_ptr<float>();
  for_each_range(tokens, tokens_of_part, [&](int64_t begin, int64_t end) {
    const TileProducts products;
    Scratch<float> scratch(kTokens * leading + experts * kColumns);
    float* const rows = scratch.take(kTokens * leading);
    float* const d_scores_t = scratch.take(experts * kColumns);
    for (int64_t token = begin; token < end; token += kTokens) {
      const int64_t some = std::min(kTokens, end - token), filled = rounded_up(some, kRowUnit);
      Panels<float> hidden(nullptr, filled, width);  // no memory: padded rows are read as they lie
      hidden.take(filled_up(hidden_TD + token * width, some, {rows, filled, width, leading}));
      layout_ops<float>().transpose({d_scores + token * experts, some, experts, experts}, {d_scores_t, experts, filled, kColumns});
      multiply({d_scores_t, experts, filled, kColumns}, hidden, {parts + token / tokens_of_part * experts * width, experts, width, width},
               token % tokens_of_part == 0 ? TileSum::Overwrite : TileSum::Add);
    }
  });
  return parts_GED.sum(0);
}

struct ScoresFunction : torch::autograd::Function<ScoresFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden_TD, const at::Tensor& weight_ED) {
    const KernelScope profiled("router scores");
    const at::Tensor hidden = hidden_TD.contiguous(), weight = weight_ED.contiguous();
    at::Tensor scores_TE = at::empty({hidden.size(0), weight.size(0)}, at::kFloat);
    for_tile_type(hidden.scalar_type(), [&](auto number) {
      multiply_by_weight(hidden.const_data_ptr<decltype(number)>(), weight, scores_TE);
    });
    context->save_for_backward({hidden, weight});
    // Not needs_input_grad(), see cross_entropy.cpp.
    context->saved_data["hidden"] = hidden_TD.requires_grad();
    context->saved_data["weight"] = weight_ED.requires_grad();
    return scores_TE;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("router_scores", "router_scores_reference()");
    const KernelScope profiled("router scores backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &hidden = saved[0], &weight = saved[1];
    const at::Tensor d_scores_TE = gradients[0].contiguous();
    at::Tensor d_hidden_TD, d_weight_ED;
    for_tile_type(hidden.scalar_type(), [&](auto number) {
      using Value = decltype(number);
      if (context->saved_data["hidden"].toBool()) {
        d_hidden_TD = at::empty_like(hidden);
        hidden_gradient(weight, d_scores_TE, d_hidden_TD.mutable_data_ptr<Value>());
      }
      if (context->saved_data["weight"].toBool()) {
        d_weight_ED = weight_gradient(hidden.const_data_ptr<Value>(), d_scores_TE, hidden.size(1));
      }
    });
    return {d_hidden_TD, d_weight_ED};
  }
};

bool has_tile_scores(const at::Tensor& hidden_TD, const at::Tensor& weight_ED) {
  const bool known = hidden_TD.scalar_type() == at::kBFloat16 || hidden_TD.scalar_type() == at::kFloat;
  return hidden_TD.is_cpu() && weight_ED.is_cpu() && known && weight_ED.scalar_type() == at::kFloat && weight_ED.numel() > 0 &&
         has_tile_products(at::kFloat);
}

// Insertion into a list of K: few numbers come in, since most are below the last of it.
template <typename Score>
void largest_of_row(const Score* scores, int64_t num_experts, int64_t num_chosen, Score* largest, int64_t* ids) {
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const Score score = scores[expert];
    if (expert >= num_chosen && !(score > largest[num_chosen - 1])) continue;
    int64_t place = std::min(expert, num_chosen - 1);
    for (; place > 0 && score > largest[place - 1]; --place) {
      largest[place] = largest[place - 1];
      ids[place] = ids[place - 1];
    }
    largest[place] = score;
    ids[place] = expert;
  }
}

}  // namespace

at::Tensor router_scores(const at::Tensor& hidden_TD, const at::Tensor& weight_ED) {
  SWITCHYARD_CHECK(hidden_TD.dim() == 2 && weight_ED.dim() == 2 && hidden_TD.size(1) == weight_ED.size(1), ShapeError,
                   "router scores: hidden has shape ", hidden_TD.sizes(), ", weight ", weight_ED.sizes(), "; expected [T, D] and [E, D]");
  if (!has_tile_scores(hidden_TD, weight_ED)) return router_scores_reference(hidden_TD, weight_ED);
  return ScoresFunction::apply(hidden_TD, weight_ED);
}

at::Tensor router_scores_reference(const at::Tensor& hidden_TD, const at::Tensor& weight_ED) {
  const at::ScalarType type = hidden_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::linear(hidden_TD.to(type), weight_ED.to(type));
}

at::Tensor largest_ids(const at::Tensor& scores_TE, int64_t num_chosen) {
  SWITCHYARD_CHECK(scores_TE.dim() == 2 && num_chosen >= 1 && num_chosen <= scores_TE.size(1), ShapeError, "largest of scores ",
                   scores_TE.sizes(), ": ", num_chosen, " chosen; expected [T, E] and 1 to E");
  const at::ScalarType type = scores_TE.scalar_type();
  if (!scores_TE.is_cpu() || (type != at::kFloat && type != at::kDouble)) return std::get<1>(at::topk(scores_TE, num_chosen, -1));
  const KernelScope profiled("largest scores");
  constexpr int64_t kUnit = 256;  // tokens that are worth a thread
  const at::Tensor rows_TE = scores_TE.contiguous();
  const int64_t num_experts = rows_TE.size(1);
  at::Tensor ids_TK = at::empty({rows_TE.size(0), num_chosen}, at::kLong);
  int64_t* const ids = ids_TK.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(type, "largest_ids", [&] {
    const scalar_t* const rows = rows_TE.const_data_ptr<scalar_t>();
    for_each_range(rows_TE.size(0), kUnit, [&](int64_t begin, int64_t end) {
      std::vector<scalar_t> largest(static_cast<size_t>(num_chosen));
      for (int64_t token = begin; token < end; ++token) {
        largest_of_row(rows + token * num_experts, num_experts, num_chosen, largest.data(), ids + token * num_chosen);
      }
    });
  });
  return ids_TK;
}

}  // namespace switchyard
