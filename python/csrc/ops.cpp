// The compiled operations of the PyTorch package, CPU. python/switchyard/composite.py has the same ones in plain ATen calls; a
// test holds them equal. L layers, S segments of a forward, E experts, K choices, T tokens. segment_T is -1 for padding.

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace {

// Columns of state_LX; python/switchyard/ops.py has the same numbers.
enum State : int64_t { kRuns, kDifferences, kPassedProbs, kPassedLogits, kBadProbs, kBadIds, kNumStates };

void check_segments(const at::Tensor& segment_T, int64_t num_tokens, int64_t num_segments) {
  TORCH_CHECK_VALUE(segment_T.dim() == 1 && segment_T.size(0) == num_tokens && segment_T.scalar_type() == at::kLong,
                    "switchyard: segments are ", segment_T.scalar_type(), " ", segment_T.sizes(), "; expected int64 [",
                    num_tokens, "], one per token of the router");
  const int64_t* segments = segment_T.const_data_ptr<int64_t>();
  for (int64_t token = 0; token < num_tokens; ++token) {
    TORCH_CHECK_INDEX(segments[token] < num_segments, "switchyard: token ", token, " is of segment ", segments[token],
                      " of a forward with ", num_segments);
  }
}

void check_layer(int64_t layer, int64_t num_layers) {
  TORCH_CHECK_INDEX(layer >= 0 && layer < num_layers, "switchyard: layer ", layer, " of ", num_layers, " MoE layers");
}

struct Slots {
  std::vector<int64_t> counts_SE;
  int64_t num_bad = 0;  // neither an expert nor -1; not an error here, for a rank that raised alone would make others wait
};

Slots count_slots(const at::Tensor& ids_TK, const int64_t* segments, int64_t num_segments, int64_t num_experts) {
  Slots slots{std::vector<int64_t>(static_cast<size_t>(num_segments * num_experts), 0)};
  const int64_t* ids = ids_TK.const_data_ptr<int64_t>();
  const int64_t num_chosen = ids_TK.size(1);
  for (int64_t token = 0; token < ids_TK.size(0); ++token) {
    if (segments[token] < 0) continue;
    int64_t* row_E = slots.counts_SE.data() + segments[token] * num_experts;
    for (const int64_t* id = ids + token * num_chosen; id != ids + (token + 1) * num_chosen; ++id) {
      if (*id >= 0 && *id < num_experts) {
        ++row_E[*id];
      } else if (*id != -1) {  // -1: an unused slot, where K varies
        ++slots.num_bad;
      }
    }
  }
  return slots;
}

// Adds each token's row to its segment, in token order, in double. Returns how many rows do not sum to one.
template <typename Number>
int64_t add_prob_rows(const at::Tensor& probs_TE, const int64_t* segments, double tolerance, double* sums_SE) {
  const Number* probs = probs_TE.const_data_ptr<Number>();
  const int64_t num_experts = probs_TE.size(1);
  int64_t bad_rows = 0;
  for (int64_t token = 0; token < probs_TE.size(0); ++token) {
    if (segments[token] < 0) continue;
    const Number* row_E = probs + token * num_experts;
    double* sum_E = sums_SE + segments[token] * num_experts;
    double total = 0.0;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      const auto prob = static_cast<double>(row_E[expert]);
      sum_E[expert] += prob;
      total += prob;
    }
    bad_rows += !(std::abs(total - 1.0) <= tolerance);  // true for NaN
  }
  return bad_rows;
}

void record(at::Tensor counts_LSE, at::Tensor prob_sums_LSE, at::Tensor state_LX, const std::optional<at::Tensor>& probs_TE,
            const at::Tensor& ids_TK, const at::Tensor& segment_T, int64_t layer) {
  check_layer(layer, counts_LSE.size(0));
  const int64_t num_segments = counts_LSE.size(1);
  const int64_t num_experts = counts_LSE.size(2);
  const at::Tensor segments_T = segment_T.contiguous();
  check_segments(segments_T, ids_TK.size(0), num_segments);
  const int64_t* segments = segments_T.const_data_ptr<int64_t>();
  const auto [counts_SE, num_bad] = count_slots(ids_TK.to(at::kLong).contiguous(), segments, num_segments, num_experts);
  const int64_t size = num_segments * num_experts;
  int64_t* kept_SE = counts_LSE.mutable_data_ptr<int64_t>() + layer * size;
  int64_t* state_X = state_LX.mutable_data_ptr<int64_t>() + layer * kNumStates;
  // The worst of the runs, as each may be bad by itself and a checkpoint runs twice.
  state_X[kBadIds] = std::max(state_X[kBadIds], num_bad);
  if (state_X[kRuns]++ > 0) {
    for (int64_t entry = 0; entry < size; ++entry) state_X[kDifferences] += kept_SE[entry] != counts_SE[size_t(entry)];
    return;
  }
  std::copy(counts_SE.begin(), counts_SE.end(), kept_SE);
  if (!probs_TE.has_value()) return;
  double* sums_SE = prob_sums_LSE.mutable_data_ptr<double>() + layer * size;
  std::fill(sums_SE, sums_SE + size, 0.0);
  const bool is_double = probs_TE->scalar_type() == at::kDouble;
  const bool is_half = probs_TE->element_size() == 2;
  const at::Tensor plain_TE = probs_TE->to(is_double ? at::kDouble : at::kFloat).contiguous();
  const double tolerance = is_half ? 2e-2 : 1e-2;  // wide ones may have been rounded to bfloat16 before
  state_X[kBadProbs] += is_double ? add_prob_rows<double>(plain_TE, segments, tolerance, sums_SE)
                                  : add_prob_rows<float>(plain_TE, segments, tolerance, sums_SE);
}

void record_lse(at::Tensor squared_lse_LS, const at::Tensor& logits_TE, const at::Tensor& segment_T, int64_t layer) {
  check_layer(layer, squared_lse_LS.size(0));
  const at::Tensor segments_T = segment_T.contiguous();
  check_segments(segments_T, logits_TE.size(0), squared_lse_LS.size(1));
  const at::Tensor lse_T = at::logsumexp(logits_TE.to(at::kDouble), {-1}).contiguous();
  double* sums_S = squared_lse_LS.mutable_data_ptr<double>() + layer * squared_lse_LS.size(1);
  std::fill(sums_S, sums_S + squared_lse_LS.size(1), 0.0);
  const double* lse = lse_T.const_data_ptr<double>();
  const int64_t* segments = segments_T.const_data_ptr<int64_t>();
  for (int64_t token = 0; token < lse_T.size(0); ++token) {
    if (segments[token] >= 0) sums_S[segments[token]] += lse[token] * lse[token];
  }
}

void mark(at::Tensor state_LX, int64_t layer, int64_t column) {
  check_layer(layer, state_LX.size(0));
  ++state_LX.mutable_data_ptr<int64_t>()[layer * kNumStates + column];
}

// An unfilled cell holds NaN.
void check_filled(double entry, const at::Tensor& scale_1) {
  TORCH_CHECK(!std::isnan(scale_1.const_data_ptr<double>()[0]),
              "switchyard: backward of a loss that was not joined. Call join(loss) on it, or let the model compute it ",
              "(labels=...). Under a Trainer that makes its own loss, attach to the Trainer");
  TORCH_CHECK(!std::isnan(entry),
              "switchyard: backward came before its balancing coefficients are known. Call close_forward() after the last ",
              "layer and, for scopes that need the whole step, close_counting() after the last forward, before backward");
}

at::Tensor rows_of_tokens(const at::Tensor& /*anchor*/, const at::Tensor& segment_T, const at::Tensor& rows_LPE,
                          const at::Tensor& scale_1, int64_t layer, at::ScalarType type) {
  check_layer(layer, rows_LPE.size(0));
  const int64_t num_segments = rows_LPE.size(1) - 1;
  const int64_t num_experts = rows_LPE.size(2);
  const at::Tensor segments_T = segment_T.contiguous();
  check_segments(segments_T, segments_T.size(0), num_segments);
  check_filled(rows_LPE.const_data_ptr<double>()[layer * rows_LPE.size(1) * num_experts], scale_1);
  const double scale = scale_1.const_data_ptr<double>()[0];
  at::Tensor grad_TE = at::empty({segments_T.size(0), num_experts}, rows_LPE.options().dtype(type));
  const double* rows = rows_LPE.const_data_ptr<double>() + layer * (num_segments + 1) * num_experts;
  const int64_t* segments = segments_T.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, type, "switchyard_rows_of_tokens", [&] {
    scalar_t* grad = grad_TE.mutable_data_ptr<scalar_t>();
    std::vector<scalar_t> scaled(static_cast<size_t>((num_segments + 1) * num_experts));
    std::transform(rows, rows + scaled.size(), scaled.begin(), [scale](double row) { return scalar_t(row * scale); });
    for (int64_t token = 0; token < grad_TE.size(0); ++token, grad += num_experts) {
      const int64_t row = segments[token] < 0 ? num_segments : segments[token];
      std::copy_n(scaled.data() + row * num_experts, num_experts, grad);
    }
  });
  return grad_TE;
}

at::Tensor z_rows_of_tokens(const at::Tensor& /*anchor*/, const at::Tensor& logits_TE, const at::Tensor& segment_T,
                            const at::Tensor& weights_P, const at::Tensor& scale_1) {
  const int64_t num_segments = weights_P.size(0) - 1;
  check_filled(weights_P.const_data_ptr<double>()[0], scale_1);
  check_segments(segment_T.contiguous(), logits_TE.size(0), num_segments);
  const at::Tensor plain_TE = logits_TE.scalar_type() == at::kDouble ? logits_TE : logits_TE.to(at::kFloat);
  const at::Tensor row_T = at::where(segment_T.lt(0), num_segments, segment_T);
  const at::Tensor weight_T1 = weights_P.mul(scale_1).index_select(0, row_T).to(plain_TE.scalar_type()).unsqueeze(1);
  const at::Tensor lse_T1 = at::logsumexp(plain_TE, {-1}, /*keepdim=*/true);
  // A padding row may hold anything, infinities included; zero times that would still be NaN.
  const at::Tensor grad_TE = at::where(weight_T1.eq(0), 0.0, at::softmax(plain_TE, -1).mul(weight_T1.mul(lse_T1).mul(2.0)));
  return grad_TE.to(logits_TE.scalar_type());
}

at::Tensor rows_of_tokens_meta(const at::Tensor& /*anchor*/, const at::Tensor& segment_T, const at::Tensor& rows_LPE,
                               const at::Tensor& /*scale_1*/, c10::SymInt /*layer*/, at::ScalarType type) {
  return at::empty_symint({segment_T.sym_size(0), rows_LPE.sym_size(2)}, rows_LPE.options().dtype(type));
}

at::Tensor z_rows_of_tokens_meta(const at::Tensor& /*anchor*/, const at::Tensor& logits_TE, const at::Tensor& /*segment_T*/,
                                 const at::Tensor& /*weights_P*/, const at::Tensor& /*scale_1*/) {
  return at::empty_symint(logits_TE.sym_sizes(), logits_TE.options());
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Tensors whose content is read in backward are kept beside the saved variables: those would complain that the content changed
// after the forward, and hooks on them (checkpointing, offloading) would keep a copy of the unfilled ones.
struct Carry : torch::autograd::Function<Carry> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& carrier, const at::Tensor& probs_TE,
                            const at::Tensor& segment_T, const at::Tensor& rows_LPE, const at::Tensor& scale_1,
                            const c10::SymInt& layer) {
    context->saved_data["segment"] = segment_T;
    context->saved_data["rows"] = rows_LPE;
    context->saved_data["scale"] = scale_1;
    context->saved_data["layer"] = layer;
    context->saved_data["type"] = static_cast<int64_t>(probs_TE.scalar_type());
    return carrier.view_as(carrier);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto& saved = context->saved_data;
    static const auto operation =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("switchyard::rows_of_tokens", "")
            .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::SymInt,
                              at::ScalarType)>();
    const at::Tensor grad_TE =
        operation.call(grads[0], saved["segment"].toTensor(), saved["rows"].toTensor(), saved["scale"].toTensor(),
                       saved["layer"].toSymInt(), static_cast<at::ScalarType>(saved["type"].toInt()));
    return {grads[0], grad_TE, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct CarryZ : torch::autograd::Function<CarryZ> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& carrier, const at::Tensor& logits_TE,
                            const at::Tensor& segment_T, const at::Tensor& weights_P, const at::Tensor& scale_1) {
    context->save_for_backward({logits_TE});
    context->saved_data["segment"] = segment_T;
    context->saved_data["weights"] = weights_P;
    context->saved_data["scale"] = scale_1;
    return carrier.view_as(carrier);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto& saved = context->saved_data;
    static const auto operation = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("switchyard::z_rows_of_tokens", "")
                                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                        const at::Tensor&, const at::Tensor&)>();
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "switchyard: the z-loss has no second derivative here; set z_coefficient=0 where backward has create_graph=True");
    const at::Tensor logits_TE = context->get_saved_variables()[0].detach();
    const at::Tensor grad_TE = operation.call(grads[0], logits_TE, saved["segment"].toTensor(), saved["weights"].toTensor(),
                                              saved["scale"].toTensor());
    return {grads[0], grad_TE, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor carry(const at::Tensor& carrier, const at::Tensor& probs_TE, const at::Tensor& segment_T, const at::Tensor& rows_LPE,
                 const at::Tensor& scale_1, c10::SymInt layer) {
  return Carry::apply(carrier, probs_TE, segment_T, rows_LPE, scale_1, layer);
}

at::Tensor carry_z(const at::Tensor& carrier, const at::Tensor& logits_TE, const at::Tensor& segment_T,
                   const at::Tensor& weights_P, const at::Tensor& scale_1) {
  return CarryZ::apply(carrier, logits_TE, segment_T, weights_P, scale_1);
}

}  // namespace

// The anchor is a gradient that the operation does not read: without it a compiler may run the operation in the forward, before
// the coefficients are known.
TORCH_LIBRARY(switchyard, library) {
  library.def("record_(Tensor(a!) counts_LSE, Tensor(b!) prob_sums_LSE, Tensor(c!) state_LX, Tensor? probs_TE, Tensor ids_TK, "
              "Tensor segment_T, SymInt layer) -> ()");
  library.def("record_lse_(Tensor(a!) squared_lse_LS, Tensor logits_TE, Tensor segment_T, SymInt layer) -> ()");
  library.def("mark_(Tensor(a!) state_LX, SymInt layer, SymInt column) -> ()");
  library.def("rows_of_tokens(Tensor anchor, Tensor segment_T, Tensor rows_LPE, Tensor scale_1, SymInt layer, ScalarType type) "
              "-> Tensor");
  library.def("z_rows_of_tokens(Tensor anchor, Tensor logits_TE, Tensor segment_T, Tensor weights_P, Tensor scale_1) -> "
              "Tensor");
  library.def("carry(Tensor carrier, Tensor probs_TE, Tensor segment_T, Tensor rows_LPE, Tensor scale_1, SymInt layer) -> "
              "Tensor");
  library.def("carry_z(Tensor carrier, Tensor logits_TE, Tensor segment_T, Tensor weights_P, Tensor scale_1) -> Tensor");
}

TORCH_LIBRARY_IMPL(switchyard, CompositeImplicitAutograd, library) {
  library.impl("carry", carry);
  library.impl("carry_z", carry_z);
}

TORCH_LIBRARY_IMPL(switchyard, CPU, library) {
  library.impl("record_", record);
  library.impl("record_lse_", record_lse);
  library.impl("mark_", mark);
  library.impl("rows_of_tokens", rows_of_tokens);
  library.impl("z_rows_of_tokens", z_rows_of_tokens);
}

TORCH_LIBRARY_IMPL(switchyard, Meta, library) {
  library.impl("record_", [](at::Tensor, at::Tensor, at::Tensor, const std::optional<at::Tensor>&, const at::Tensor&,
                             const at::Tensor&, c10::SymInt) {});
  library.impl("record_lse_", [](at::Tensor, const at::Tensor&, const at::Tensor&, c10::SymInt) {});
  library.impl("mark_", [](at::Tensor, c10::SymInt, c10::SymInt) {});
  library.impl("rows_of_tokens", rows_of_tokens_meta);
  library.impl("z_rows_of_tokens", z_rows_of_tokens_meta);
}

// Counting and coefficients are constants: nothing is differentiated through them.
TORCH_LIBRARY_IMPL(switchyard, Autograd, library) {
  for (const char* name : {"record_", "record_lse_", "mark_", "rows_of_tokens", "z_rows_of_tokens"}) {
    library.impl(name, torch::CppFunction::makeFallthrough());
  }
}
