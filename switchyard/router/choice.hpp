#pragma once
// What several routers need: checks, precision, padding, streams. T tokens, D width, E experts, K chosen per token.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "switchyard/core/rng.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {

/// Throws UsageError unless D >= 1 and 1 <= K <= E; the message names the layer.
void check_router_shape(std::string_view router, const RouterShape& shape);

/// Throws ShapeError unless hidden is floating [T, D] and every defined tensor of the context has T rows.
void check_route_inputs(std::string_view router, const RouterShape& shape, const at::Tensor& hidden_TD,
                        const RouteContext& context);

/// Scores and weights are fp32, or double where the hidden states are.
[[nodiscard]] at::ScalarType score_type(const at::Tensor& hidden_TD);

/// -1 in the rows of padding tokens. An undefined valid_T leaves ids_TK as it is.
[[nodiscard]] at::Tensor mask_padding(const at::Tensor& ids_TK, const at::Tensor& valid_T);

/// One key for all tokens of a forward, from seed, phase, step and layer. Training and its counting pre-pass share a key;
/// at evaluation the step does not enter, so that every evaluation of a run makes the same choices.
[[nodiscard]] uint64_t stream_key(std::string_view stream, const RouteContext& context);

/// The stream of one token, keyed by its position in the step.
[[nodiscard]] Rng token_stream(uint64_t key, const RouteContext& context, int64_t token);

/// Routing of a router without scores: every chosen expert weighs 1/K. Uses context.replay_ids_TK where it is given.
[[nodiscard]] Routing equal_weight_routing(const at::Tensor& ids_TK, const RouterShape& shape, const at::Tensor& hidden_TD,
                                           const RouteContext& context);

}  // namespace switchyard
