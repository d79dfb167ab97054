#include "tests/train/ranked_steps.hpp"

#include "switchyard/core/scope.hpp"
#include "switchyard/train/adamw.hpp"

namespace switchyard {

BalanceConfig ranked_balance(std::string_view scope) {
  BalanceConfig config;
  parse(scope, config.scope);
  config.coefficient = 0.7;
  config.z_coefficient = 0.05;
  return config;
}

const std::vector<ExecutionConfig>& step_orders() {
  static const std::vector<ExecutionConfig> all = {
      {.forward = ForwardPacking::Separate},
      {.forward = ForwardPacking::Together},
      {.exact = ExactOrder::Prepass, .forward = ForwardPacking::Separate},
      {.exact = ExactOrder::Recompute, .recompute = Recompute::Layers, .forward = ForwardPacking::Separate}};
  return all;
}

StepOutcome one_process(const ModelConfig& config, const BalanceConfig& balance, const std::vector<Batch>& micro_batches,
                        const ExecutionConfig& execution, BalanceState state) {
  Decoder model(config, ComputeType::Float64, 3, kRankSeed);
  const Alone alone;
  StepOutcome outcome;
  outcome.result = run_step(model, balance, state, micro_batches, execution, kRankSeed, kRankStep, alone.ranks);
  for (const Parameter* parameter : model.parameters()) outcome.gradients.push_back(parameter->grad);
  outcome.gradient_norm = global_gradient_norm(model.parameters(), *alone.comm);
  outcome.state = state;
  return outcome;
}

TensorMap make_all(const TensorsToSave& tensors) {
  TensorMap made;
  for (const std::string& name : order_of_making(tensors)) made[name] = tensors.at(name).make();
  return made;
}

}  // namespace switchyard
