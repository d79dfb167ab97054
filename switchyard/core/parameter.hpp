#pragma once
// A named weight: the master that the optimizer moves, what computes, and the gradient of the step.

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

/// Which rows this process's optimizer moves of a parameter that every rank holds whole (train/update_shares.hpp).
struct UpdateRows {
  int64_t begin = 0;
  int64_t count = 0;  // 0: all
};

struct Parameter {
  std::string name;    // Hugging Face name, "model.layers.0.mlp.gate.weight"
  at::Tensor master;   // fp32 or double, no autograd. Undefined where the forward computes in bf16: then it is kept in halves,
  at::Tensor lower;    // of which this is the lower (int16) and compute the upper one (kernels/halves.hpp). Else undefined
  at::Tensor compute;  // leaf that the forward reads: the same storage as master, or the upper half
  at::Tensor grad;     // type of `compute` after one backward, of `master` when several are summed; undefined before the first
  /// After the exchange between ranks, in place of `grad`: each rank's gradient of the rows in `update`, in rank order.
  std::vector<at::Tensor> grad_parts;
  Decay decay = Decay::Yes;
  Training training = Training::Trained;
  Shard shard{};
  UpdateRows update{};
};

[[nodiscard]] inline bool is_sharded(const Parameter& parameter) { return parameter.shard.whole > 0; }

[[nodiscard]] inline bool is_in_halves(const Parameter& parameter) { return parameter.lower.defined(); }

[[nodiscard]] inline at::ScalarType master_type(const Parameter& parameter) {
  return is_in_halves(parameter) ? at::kFloat : parameter.master.scalar_type();
}

/// The master, or its upper half.
[[nodiscard]] inline const at::Tensor& upper_or_whole(const Parameter& parameter) {
  return is_in_halves(parameter) ? parameter.compute : parameter.master;
}

[[nodiscard]] inline at::IntArrayRef sizes_of(const Parameter& parameter) { return upper_or_whole(parameter).sizes(); }

[[nodiscard]] inline bool shares_update(const Parameter& parameter) { return parameter.update.count > 0; }

/// Of a tensor with the rows of the parameter those that this process's optimizer moves; a view.
[[nodiscard]] inline at::Tensor updated_rows(const Parameter& parameter, const at::Tensor& tensor) {
  return shares_update(parameter) ? tensor.narrow(0, parameter.update.begin, parameter.update.count) : tensor;
}

/// What adds up to the gradient of the rows that this process's optimizer moves; empty: zeros.
[[nodiscard]] inline std::vector<at::Tensor> gradient_parts(const Parameter& parameter) {
  return parameter.grad.defined() ? std::vector<at::Tensor>{parameter.grad} : parameter.grad_parts;
}

using ParameterRefs = std::vector<Parameter*>;

}  // namespace switchyard
