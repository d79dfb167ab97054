#pragma once
// AdamW with decoupled weight decay (arXiv 1711.05101, Algorithm 2 with the schedule multiplier inside the learning rate, as
// PyTorch has it), and clipping of the gradient by its global norm.
//
//   m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   w = w (1 - lr wd) - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
//
// Weights are the masters of Parameter (fp32, or double), moments have their type or are kept in bf16 (OptimizerConfig::moments). wd is
// 0 where Parameter::decay is No.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/parameter.hpp"
#include "switchyard/train/optimizer_config.hpp"

namespace switchyard {

/// Root of the sum of all squared gradients, summed in double. Parameters without a gradient count as zero.
/// @param comm  the ranks that share the parameters or their updates. Collective; gradients that are not shared are equal on all
/// @throws StateError naming the parameter when a gradient is not finite; on ranks SharedError, on all of them
[[nodiscard]] double global_gradient_norm(const ParameterRefs& parameters, Communicator& comm);

/// clip_norm / norm where norm is larger, else 1: what AdamW::step is to scale the gradients by. clip_norm 0: no clipping.
[[nodiscard]] double clip_scale(double norm, double clip_norm);

class AdamW {
 public:
  /// Moments start at zero; of a parameter whose update is shared (train/update_shares.hpp) they have this rank's rows. Frozen
  /// parameters are left out. The parameters must outlive the optimizer.
  AdamW(const ParameterRefs& parameters, const OptimizerConfig& config);

  /// One update of every trained master from gradient_scale * its gradient (gradient_parts()); none counts as zeros.
  void step(double learning_rate, double gradient_scale = 1.0);
  [[nodiscard]] int64_t steps_done() const { return steps_done_; }

  /// Moments as "<parameter>.first" and "<parameter>.second"; they share storage with the optimizer.
  [[nodiscard]] std::map<std::string, at::Tensor> moments() const;
  /// @throws DataError when a moment is missing, is left over, or has the wrong shape or type; nothing is changed then
  void restore(const std::map<std::string, at::Tensor>& moments, int64_t steps_done);

 private:
  struct Group {  // tensors that share their weight decay
    double weight_decay = 0.0;
    std::vector<Parameter*> parameters;
    std::vector<at::Tensor> first;
    std::vector<at::Tensor> second;
  };

  OptimizerConfig config_;
  std::vector<Group> groups_;
  int64_t steps_done_ = 0;
};

}  // namespace switchyard
