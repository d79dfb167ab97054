#include "switchyard/router/choice.hpp"

#include <ATen/ops/full_like.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

void check_rows(std::string_view router, std::string_view what, const at::Tensor& labels_T, int64_t num_tokens) {
  if (!labels_T.defined()) return;
  SWITCHYARD_CHECK(labels_T.dim() >= 1 && labels_T.size(0) == num_tokens, ShapeError, "router '", router, "': ", what,
                   " has shape ", labels_T.sizes(), "; expected ", num_tokens, " rows, one per token of hidden_TD");
}

}  // namespace

void check_router_shape(std::string_view router, const RouterShape& shape) {
  SWITCHYARD_CHECK(shape.width >= 1, UsageError, "router '", router, "', layer ", shape.layer, ": width ", shape.width,
                   "; expected at least 1");
  SWITCHYARD_CHECK(shape.num_chosen >= 1 && shape.num_chosen <= shape.num_experts, UsageError, "router '", router, "', layer ",
                   shape.layer, ": ", shape.num_chosen, " chosen of ", shape.num_experts,
                   " experts; expected 1 <= num_chosen <= num_experts");
}

void check_route_inputs(std::string_view router, const RouterShape& shape, const at::Tensor& hidden_TD,
                        const RouteContext& context) {
  SWITCHYARD_CHECK(
      hidden_TD.defined() && hidden_TD.dim() == 2 && hidden_TD.size(1) == shape.width && hidden_TD.is_floating_point(),
      ShapeError, "router '", router, "', layer ", shape.layer, ": hidden_TD must be a floating-point tensor [T, ", shape.width,
      "]; given ", hidden_TD.defined() ? join_text(hidden_TD.sizes()) : std::string("an undefined tensor"));
  const int64_t num_tokens = hidden_TD.size(0);
  check_rows(router, "token_T", context.token_T, num_tokens);
  check_rows(router, "domain_T", context.domain_T, num_tokens);
  check_rows(router, "document_T", context.document_T, num_tokens);
  check_rows(router, "valid_T", context.valid_T, num_tokens);
  check_rows(router, "position_T", context.position_T, num_tokens);
  check_rows(router, "replay_ids_TK", context.replay_ids_TK, num_tokens);
  SWITCHYARD_CHECK(!context.valid_T.defined() || context.valid_T.scalar_type() == at::kBool, ShapeError, "router '", router,
                   "': valid_T must be a bool tensor");
  SWITCHYARD_CHECK(!context.replay_ids_TK.defined() ||
                       (context.replay_ids_TK.dim() == 2 && context.replay_ids_TK.size(1) == shape.num_chosen &&
                        context.replay_ids_TK.scalar_type() == at::kLong),
                   ShapeError, "router '", router, "': replay_ids_TK must be int64 [T, ", shape.num_chosen, "]");
}

at::ScalarType score_type(const at::Tensor& hidden_TD) {
  return hidden_TD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor mask_padding(const at::Tensor& ids_TK, const at::Tensor& valid_T) {
  if (!valid_T.defined()) return ids_TK;
  return ids_TK.masked_fill(valid_T.logical_not().unsqueeze(1), -1);
}

uint64_t stream_key(std::string_view stream, const RouteContext& context) {
  const bool evaluate = context.phase == RoutingPhase::Evaluate;
  const uint64_t step = evaluate ? 0 : static_cast<uint64_t>(context.step);
  return hash_words({hash_text(stream), context.seed, evaluate ? 1U : 0U, step, static_cast<uint64_t>(context.layer)});
}

Rng token_stream(uint64_t key, const RouteContext& context, int64_t token) {
  const at::Tensor& position_T = context.position_T;  // of any stride: it may be a column of a table
  const int64_t position =
      position_T.defined() ? position_T.const_data_ptr<int64_t>()[token * position_T.stride(0)] : context.first_token + token;
  return Rng::from_state({.key = hash_words({key, static_cast<uint64_t>(position)}), .counter = 0});
}

Routing equal_weight_routing(const at::Tensor& ids_TK, const RouterShape& shape, const at::Tensor& hidden_TD,
                             const RouteContext& context) {
  const at::Tensor chosen_TK = context.replay_ids_TK.defined() ? context.replay_ids_TK : ids_TK;
  const at::Tensor masked_TK = mask_padding(chosen_TK.to(hidden_TD.device()), context.valid_T);
  const double weight = 1.0 / static_cast<double>(shape.num_chosen);
  const at::Tensor weights_TK = at::full_like(masked_TK, weight, masked_TK.options().dtype(score_type(hidden_TD)));
  return routing_from_top_k(masked_TK, weights_TK, shape.num_experts);
}

}  // namespace switchyard
