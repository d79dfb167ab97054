#include "switchyard/model/moe_layer.hpp"

#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "switchyard/balance/orthogonality.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/experts.hpp"
#include "switchyard/model/sharded_experts.hpp"

namespace switchyard {
namespace {

std::unique_ptr<Router> make_router(const ModelConfig& config, int64_t moe_layer, int64_t num_domains,
                                    const std::string& prefix, const WeightSource& source) {
  RouterShape shape;
  shape.width = config.width;
  shape.num_experts = config.num_experts;
  shape.num_chosen = config.num_chosen;
  shape.num_domains = num_domains;
  shape.layer = moe_layer;
  shape.name_prefix = prefix + "gate";
  Rng init(source.seed, "init", {hash_text(shape.name_prefix)});
  std::unique_ptr<Router> router = find_router(config.router.name).make(config.router, shape, init);
  for (Parameter* parameter : router->parameters()) {
    parameter->master = parameter->master.to(source.master_type);
    attach_compute(*parameter, source.master_type);
  }
  return router;
}

// A dropped slot keeps its place in the sorted order and adds nothing.
at::Tensor combine_weights(const Routing& routing, at::ScalarType type) {
  const at::Tensor weight_A = routing.weight_A.to(type);
  return routing.kept_A.defined() ? weight_A.mul(routing.kept_A) : weight_A;
}

}  // namespace

MoeLayer::MoeLayer(const ModelConfig& config, int64_t moe_layer, int64_t num_domains, const std::string& prefix,
                   const WeightSource& source)
    : moe_layer_(moe_layer),
      num_experts_(config.num_experts),
      expert_ranks_(source.expert_ranks),
      expert_prefix_(prefix + "experts."),
      gate_up_parts_{{"gate_proj.weight", config.expert_width}, {"up_proj.weight", config.expert_width}},
      down_parts_{{"down_proj.weight", config.width}},
      router_(make_router(config, moe_layer, num_domains, prefix, source)),
      gate_up_(source.expert_matrices(expert_prefix_ + "gate_up_proj", config.num_experts, config.width, expert_prefix_,
                                      gate_up_parts_)),
      down_(source.expert_matrices(expert_prefix_ + "down_proj", config.num_experts, config.expert_width, expert_prefix_,
                                   down_parts_)) {
  if (config.shared_expert_width > 0) {
    shared_.emplace(config.width, config.shared_expert_width, prefix + "shared_expert.", source);
  }
}

Routing MoeLayer::route(const at::Tensor& normed_TD, const LayerInput& input) {
  const PartScope part("router");
  const ForwardContext& context = input.context;
  RouteContext route;
  route.phase = context.phase;
  route.seed = context.seed;
  route.step = context.step;
  route.layer = moe_layer_;
  route.first_token = context.first_token;
  route.token_T = input.token_T;
  route.domain_T = input.domain_T;
  route.document_T = input.document_T;
  route.valid_T = input.valid_T;
  if (StepBalance* balance = context.balance) {
    route.through_logits = [&, balance](const at::Tensor& logits_TE) {
      return balance->through_logits(context.forward, moe_layer_, logits_TE, input.segment_T);
    };
    route.through_probs = [&, balance](const at::Tensor& probs_TE) {
      return balance->through_probs(context.forward, moe_layer_, probs_TE, input.segment_T);
    };
  }
  route.position_T = context.position_T;
  if (context.selection_offsets_LE.defined()) {
    route.selection_offsets_E = context.selection_offsets_LE.select(0, moe_layer_);
    route.selection_score = context.selection_score;
  }
  if (!context.replay_ids_LTK.empty()) route.replay_ids_TK = context.replay_ids_LTK.at(static_cast<size_t>(moe_layer_));
  return router_->route(normed_TD, route);
}

at::Tensor MoeLayer::forward(const at::Tensor& normed_TD, const LayerInput& input, LayerRun run) {
  const ForwardContext& context = input.context;
  const Routing routing = route(normed_TD, input);
  SWITCHYARD_CHECK(routing.num_tokens == normed_TD.size(0) && routing.num_experts == num_experts_, ShapeError,
                   "router of MoE layer ", moe_layer_, " returned a routing of ", routing.num_tokens, " tokens and ",
                   routing.num_experts, " experts; expected ", normed_TD.size(0), " and ", num_experts_);
  if (context.balance) context.balance->record(context.forward, moe_layer_, routing, input.segment_T);
  if (run == LayerRun::First && context.observe) context.observe(moe_layer_, routing);

  const PartScope part("experts");
  const ExpertSlots slots{routing.token_A, combine_weights(routing, master_type(gate_up_)), routing.offsets_E};
  at::Tensor out_TD = run_experts(normed_TD, slots);
  if (context.balance != nullptr && context.balance->wants_outputs()) {
    const at::Tensor loss_T = output_losses_T(normed_TD, routing);
    out_TD = context.balance->through_outputs(context.forward, moe_layer_, out_TD, loss_T, input.segment_T);
  }
  return shared_ ? out_TD.add(shared_->forward(normed_TD)) : out_TD;
}

at::Tensor MoeLayer::run_experts(const at::Tensor& hidden_TD, const ExpertSlots& slots) const {
  return expert_ranks_ == nullptr ? grouped_experts(hidden_TD, gate_up_.compute, down_.compute, slots)
                                  : sharded_experts(hidden_TD, gate_up_.compute, down_.compute, slots, *expert_ranks_);
}

// Each slot's output by itself. A second run of the experts: the loss is rare, and the combining kernel stays simple.
at::Tensor MoeLayer::output_losses_T(const at::Tensor& normed_TD, const Routing& routing) const {
  SWITCHYARD_CHECK(routing.ids_TK.defined(), UsageError, "MoE layer ", moe_layer_,
                   ": balance.orthogonality_coefficient needs a router with a fixed number of experts per token");
  const int64_t num_slots = routing.token_A.size(0);
  const at::TensorOptions wide = normed_TD.options().dtype(master_type(gate_up_));
  const ExpertSlots alone{at::arange(num_slots, routing.token_A.options()), at::ones({num_slots}, wide), routing.offsets_E};
  const at::Tensor out_AD = run_experts(normed_TD.index_select(0, routing.token_A), alone);
  // Slots by token: as many for each valid token, none for padding.
  const at::Tensor by_token_A = at::argsort(routing.token_A, /*stable=*/true, 0, /*descending=*/false);
  const int64_t num_chosen = routing.ids_TK.size(1);
  const at::Tensor loss_T = orthogonality_loss(out_AD.index_select(0, by_token_A).view({-1, num_chosen, out_AD.size(1)}));
  const at::Tensor valid_T = routing.ids_TK.select(1, 0).ge(0);
  return at::zeros({routing.num_tokens}, loss_T.options()).masked_scatter(valid_T, loss_T);
}

Parameter* MoeLayer::router_weight() {
  for (Parameter* parameter : router_->parameters()) {
    if (parameter->training == Training::Trained && sizes_of(*parameter).size() == 2) return parameter;
  }
  return nullptr;
}

ParameterRefs MoeLayer::parameters() {
  ParameterRefs parameters = router_->parameters();
  parameters.insert(parameters.end(), {&gate_up_, &down_});
  if (shared_) {
    const ParameterRefs shared = shared_->parameters();
    parameters.insert(parameters.end(), shared.begin(), shared.end());
  }
  return parameters;
}

std::vector<NamedTensor> MoeLayer::named_weights(const MasterValues& values) const {
  std::vector<NamedTensor> weights;
  for (const Parameter* parameter : router_->parameters()) weights.push_back({parameter->name, values(*parameter)});
  for (const auto& parts : {expert_parts(values(gate_up_), expert_prefix_, gate_up_parts_, gate_up_.shard.begin),
                            expert_parts(values(down_), expert_prefix_, down_parts_, down_.shard.begin)}) {
    weights.insert(weights.end(), parts.begin(), parts.end());
  }
  if (shared_) {
    const std::vector<NamedTensor> shared = shared_->named_weights(values);
    weights.insert(weights.end(), shared.begin(), shared.end());
  }
  return weights;
}

}  // namespace switchyard
