#pragma once
// A named weight: fp32 master, the copy that computes, and the gradient of the step.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

enum class Decay { No, Yes };          // weight decay
enum class Training { Frozen, Trained };

/// Which rows (along the first dimension) of a divided parameter this process holds.
struct Shard {
  int64_t begin = 0;
  int64_t whole = 0;  // rows over all ranks; 0: the parameter is not divided, every rank holds all of it
};

struct Parameter {
  std::string name;    // Hugging Face name, "model.layers.0.mlp.gate.weight"
  at::Tensor master;   // fp32, no autograd
  at::Tensor compute;  // leaf that the forward reads: bf16 copy, or the same storage as master; refreshed once a step
  at::Tensor grad;     // as compute after one backward, as master when summed over several; undefined until the first
  Decay decay = Decay::Yes;
  Training training = Training::Trained;
  Shard shard{};
};

[[nodiscard]] inline bool is_sharded(const Parameter& parameter) { return parameter.shard.whole > 0; }

using ParameterRefs = std::vector<Parameter*>;

}  // namespace switchyard
