#pragma once
// A MoE layer: router, balancing, experts, optional shared expert. T tokens, D width, E experts, F expert width.

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/core/parameter.hpp"
#include "switchyard/kernels/experts.hpp"
#include "switchyard/model/config.hpp"
#include "switchyard/model/feed_forward.hpp"
#include "switchyard/model/layer_input.hpp"
#include "switchyard/model/weights.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {

class MoeLayer {
 public:
  /// @param moe_layer  index among the MoE layers: what the balance ledger, the router and the observer count by
  /// @param prefix     "model.layers.0.mlp."
  MoeLayer(const ModelConfig& config, int64_t moe_layer, int64_t num_domains, const std::string& prefix,
           const WeightSource& source);

  /// @return [T, D], to be added to the residual stream; zero in padding rows unless there is a shared expert
  [[nodiscard]] at::Tensor forward(const at::Tensor& normed_TD, const LayerInput& input, LayerRun run);

  [[nodiscard]] ParameterRefs parameters();
  /// The matrix that scores experts, [E, D]; null for routers without a trained one.
  [[nodiscard]] Parameter* router_weight();
  [[nodiscard]] std::vector<NamedTensor> named_weights(const MasterValues& values) const;

 private:
  [[nodiscard]] Routing route(const at::Tensor& normed_TD, const LayerInput& input);
  [[nodiscard]] at::Tensor run_experts(const at::Tensor& hidden_TD, const ExpertSlots& slots) const;
  [[nodiscard]] at::Tensor output_losses_T(const at::Tensor& normed_TD, const Routing& routing) const;

  int64_t moe_layer_;
  int64_t num_experts_;
  Communicator* expert_ranks_;  // null: all experts are here
  std::string expert_prefix_;
  std::vector<WeightSource::Part> gate_up_parts_;
  std::vector<WeightSource::Part> down_parts_;
  std::unique_ptr<Router> router_;
  Parameter gate_up_;  // [E, 2F, D]; of this rank's experts where they are divided
  Parameter down_;     // [E, D, F]
  std::optional<FeedForward> shared_;
};

}  // namespace switchyard
