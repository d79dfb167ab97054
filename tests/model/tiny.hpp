#pragma once
// Small decoders and batches for the model tests.

#include <cstdint>

#include "switchyard/data/batch.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard::testing {

/// D 12, 2 layers, 4 query and 2 key heads of width 6, 4 experts of width 5, 2 chosen, V 19. Weights are large enough for
/// every part to matter.
[[nodiscard]] ModelConfig tiny_config();

/// Random tokens and next-token targets, one segment a row, all of micro-batch 0.
[[nodiscard]] Batch random_batch(int64_t rows, int64_t positions, int64_t vocabulary, uint64_t stream);

/// The same with the last `padded` positions of the last row made padding.
[[nodiscard]] Batch padded_batch(int64_t rows, int64_t positions, int64_t vocabulary, uint64_t stream, int64_t padded);

/// Forward, loss sum, backward, collect: the loss. Gradients lie in the parameters.
double run_step(Decoder& model, const Batch& batch, const ForwardContext& context = {});

/// Copies of all gradients, by parameter name.
[[nodiscard]] std::vector<NamedTensor> gradients_of(Decoder& model);

}  // namespace switchyard::testing
