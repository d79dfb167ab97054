#pragma once
// Grids of devices on which the same tokens and layers may lie, and who must add counts up with whom. A group is declared by
// how tokens are sharded, never by a name such as "world": that is what makes data, context, tensor and pipeline layouts agree.

#include <cstdint>
#include <vector>

namespace switchyard::conform {

/// What the devices of one tensor-parallel group hold: the same tokens each, or a share each (sequence parallelism).
enum class TensorTokens { Replicated, Sharded };

/// Devices are numbered ((pipeline * data + d) * context + c) * tensor + t.
struct DeviceGrid {
  int64_t data = 1;      // other sequences
  int64_t context = 1;   // other tokens of the same sequences
  int64_t tensor = 1;    // parts of the weights
  int64_t pipeline = 1;  // other layers
  TensorTokens tensor_tokens = TensorTokens::Replicated;

  bool operator==(const DeviceGrid&) const = default;
};

struct DevicePlace {
  int64_t data = 0;
  int64_t context = 0;
  int64_t tensor = 0;
  int64_t pipeline = 0;
};

[[nodiscard]] int64_t num_devices(const DeviceGrid& grid);
[[nodiscard]] DevicePlace place_of(const DeviceGrid& grid, int64_t device);

/// How many devices of one stage hold different tokens: the `num_ranks` of a case.
[[nodiscard]] int64_t num_shards(const DeviceGrid& grid);
/// Which of these shares of the tokens a device holds, in [0, num_shards).
[[nodiscard]] int64_t shard_of(const DeviceGrid& grid, int64_t device);

/// The devices whose counts make up those of this device's layers: of its own stage, one for each share of the tokens.
[[nodiscard]] std::vector<int64_t> token_group(const DeviceGrid& grid, int64_t device);

/// Layers of a stage, contiguous and in order; earlier stages get one more where they do not divide evenly.
[[nodiscard]] std::vector<int64_t> layers_of_stage(const DeviceGrid& grid, int64_t stage, int64_t num_layers);

}  // namespace switchyard::conform
