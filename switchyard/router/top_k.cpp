// Softmax over all experts, then the K largest (arXiv 2101.03961, Switch, for K = 1; Qwen3-MoE for any K). `frozen_random`
// is the same with weights that are never trained and no balancing: a null.

#include <ATen/ops/softmax.h>

#include "switchyard/kernels/router_scores.hpp"
#include "switchyard/router/choice.hpp"
#include "switchyard/router/routers.hpp"

namespace switchyard {
namespace {

// Least sum of chosen probabilities that is divided by: offsets may choose experts whose probabilities are all 0 in fp32.
constexpr double kLeastSum = 1e-20;

class TopKRouter : public Router {
 public:
  TopKRouter(std::string_view name, const RouterConfig& config, const RouterShape& shape, Training training, Rng& init)
      : name_(name), config_(config), shape_(shape) {
    check_router_shape(name, shape);
    weight_.name = shape.name_prefix + ".weight";
    weight_.master = init.normal_tensor({shape.num_experts, shape.width}, config.init_deviation);
    weight_.compute = weight_.master.detach();
    weight_.compute.set_requires_grad(training == Training::Trained);
    weight_.training = training;
  }

  Routing route(const at::Tensor& hidden_TD, const RouteContext& context) override {
    check_route_inputs(name_, shape_, hidden_TD, context);
    // A frozen router is a null: a loss that moved the hidden states instead of its weights would make it something else.
    const bool balanced = weight_.training == Training::Trained;
    at::Tensor logits_TE = router_scores(hidden_TD, weight_.compute);
    if (balanced && context.through_logits) logits_TE = context.through_logits(logits_TE);
    at::Tensor probs_TE = at::softmax(logits_TE, -1);
    if (balanced && context.through_probs) probs_TE = context.through_probs(probs_TE);

    const at::Tensor ids_TK = choose(logits_TE, probs_TE, context);
    // The gather needs an index also in padding rows; their weights are dropped with their slots.
    at::Tensor weights_TK = probs_TE.gather(1, ids_TK.clamp_min(0));
    if (config_.normalize == WeightNormalization::ChosenSum) {
      weights_TK = weights_TK.div(weights_TK.sum(1, /*keepdim=*/true).clamp_min(kLeastSum));
    }
    Routing routing = routing_from_top_k(mask_padding(ids_TK, context.valid_T), weights_TK, shape_.num_experts);
    routing.logits_TE = logits_TE;
    routing.probs_TE = probs_TE;
    return routing;
  }

  ParameterRefs parameters() override { return {&weight_}; }

 private:
  // By logits, not probabilities: a softmax that underflows to zero would leave ties. Offsets of probabilities are added in double:
  // in fp32 one of 1e-3 leaves nothing of a probability below 1e-10.
  [[nodiscard]] at::Tensor choose(const at::Tensor& logits_TE, const at::Tensor& probs_TE, const RouteContext& context) const {
    if (context.replay_ids_TK.defined()) return context.replay_ids_TK.to(logits_TE.device());
    at::Tensor scores_TE = logits_TE.detach();
    if (context.selection_offsets_E.defined() && weight_.training == Training::Trained) {
      if (context.selection_score == SelectionScore::Probs) scores_TE = probs_TE.detach().to(at::kDouble);
      scores_TE = scores_TE.add(context.selection_offsets_E.to(scores_TE.options()));
    }
    return largest_ids(scores_TE, shape_.num_chosen);
  }

  std::string name_;
  RouterConfig config_;
  RouterShape shape_;
  Parameter weight_;
};

}  // namespace

std::unique_ptr<Router> make_top_k_router(const RouterConfig& config, const RouterShape& shape, Rng& init) {
  return std::make_unique<TopKRouter>("top_k", config, shape, Training::Trained, init);
}

std::unique_ptr<Router> make_frozen_random_router(const RouterConfig& config, const RouterShape& shape, Rng& init) {
  return std::make_unique<TopKRouter>("frozen_random", config, shape, Training::Frozen, init);
}

}  // namespace switchyard
