#pragma once
// Sizes that balancing must know.

#include <cstddef>
#include <cstdint>

namespace switchyard {

struct BalanceShape {
  int64_t num_layers = 0;    // MoE layers of this rank only (of its pipeline stage)
  int64_t num_experts = 0;   // E
  int64_t num_chosen = 0;    // K, the mean where it varies
  int64_t total_layers = 0;  // MoE layers of the whole model, for the mean over layers; 0: num_layers

  [[nodiscard]] int64_t layers_of_model() const { return total_layers == 0 ? num_layers : total_layers; }
  /// Of what is kept by forward and layer, [F * L].
  [[nodiscard]] size_t index(int64_t forward, int64_t layer) const { return static_cast<size_t>(forward * num_layers + layer); }
};

}  // namespace switchyard
