#pragma once
// What every layer of one forward looks at besides the hidden states. B rows, S positions, T = B * S tokens.

#include <ATen/core/Tensor.h>

#include "switchyard/kernels/rope.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard {

struct LayerInput {
  int64_t batch = 0;      // B
  int64_t positions = 0;  // S
  RopeTable rope;
  at::Tensor token_T;
  at::Tensor domain_T;
  at::Tensor document_T;
  at::Tensor segment_T;
  at::Tensor valid_T;  // undefined: no padding
  ForwardContext context;
};

/// Whether a layer runs for the first time in this forward or again in the backward of a recomputed layer.
enum class LayerRun { First, Again };

}  // namespace switchyard
