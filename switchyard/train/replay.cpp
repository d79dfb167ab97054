#include "switchyard/train/replay.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/sort.h>

#include <algorithm>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/router_scores.hpp"

namespace switchyard {

int64_t count_other_choices(const Routing& routing, const at::Tensor& ids_TK) {
  // Routers choose by logits where they have them: probabilities may tie where those do not.
  const at::Tensor& scores_TE = routing.logits_TE.defined() ? routing.logits_TE : routing.probs_TE;
  if (!scores_TE.defined()) return 0;
  const at::NoGradGuard no_grad;
  const at::Tensor own_TK = largest_ids(scores_TE, ids_TK.size(1));  // as routers choose, equal scores too
  const at::Tensor own_sorted_TK = std::get<0>(at::sort(own_TK, /*dim=*/1));
  const at::Tensor used_sorted_TK = std::get<0>(at::sort(ids_TK, /*dim=*/1));
  const at::Tensor valid_T = ids_TK.select(1, 0).ge(0);
  return own_sorted_TK.ne(used_sorted_TK).any(/*dim=*/1).logical_and(valid_T).sum().item<int64_t>();
}

void ChoiceRecorder::record(size_t forward, ForwardContext& context) {
  std::vector<at::Tensor>& layers = ids_LTK_[forward];
  layers.clear();
  context.observe = [&layers](int64_t moe_layer, const Routing& routing) {
    SWITCHYARD_CHECK(routing.ids_TK.defined(), UsageError, "the router of MoE layer ", moe_layer,
                     " chooses a varying number of experts; its choices cannot be replayed. Set "
                     "execution.on_replay_mismatch = error or execution.exact = retain");
    layers.resize(std::max(layers.size(), static_cast<size_t>(moe_layer) + 1));
    layers[static_cast<size_t>(moe_layer)] = routing.ids_TK;
  };
}

void ChoiceRecorder::replay(size_t forward, ForwardContext& context) {
  const std::vector<at::Tensor>& layers = ids_LTK_.at(forward);
  context.replay_ids_LTK = layers;
  context.observe = [this, &layers](int64_t moe_layer, const Routing& routing) {
    differences_ += count_other_choices(routing, layers.at(static_cast<size_t>(moe_layer)));
  };
}

}  // namespace switchyard
