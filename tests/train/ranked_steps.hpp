#pragma once
// Steps of one process, in double, that steps on ranks are held against.

#include <string_view>
#include <vector>

#include "switchyard/model/weights_file.hpp"
#include "switchyard/train/step.hpp"
#include "tests/train/fixtures.hpp"

namespace switchyard {

inline constexpr uint64_t kRankSeed = 7;
inline constexpr int64_t kRankStep = 4;

struct StepOutcome {
  StepResult result;
  std::vector<at::Tensor> gradients;  // in the order of Decoder::parameters()
  double gradient_norm = 0.0;
  BalanceState state;
};

/// LBL over the scope, and z-loss.
[[nodiscard]] BalanceConfig ranked_balance(std::string_view scope);
/// Separate, together, with a pre-pass, with recomputed layers.
[[nodiscard]] const std::vector<ExecutionConfig>& step_orders();
[[nodiscard]] StepOutcome one_process(const ModelConfig& config, const BalanceConfig& balance,
                                      const std::vector<Batch>& micro_batches, const ExecutionConfig& execution, BalanceState state);
/// All of them, in the order of a checkpoint.
[[nodiscard]] TensorMap make_all(const TensorsToSave& tensors);

}  // namespace switchyard
