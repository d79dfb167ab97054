#include "switchyard/conform/layout.hpp"

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard::conform {

int64_t num_devices(const DeviceGrid& grid) { return grid.data * grid.context * grid.tensor * grid.pipeline; }

DevicePlace place_of(const DeviceGrid& grid, int64_t device) {
  SWITCHYARD_CHECK(device >= 0 && device < num_devices(grid), UsageError, "device ", device, " of ", num_devices(grid));
  DevicePlace place;
  place.tensor = device % grid.tensor;
  place.context = device / grid.tensor % grid.context;
  place.data = device / (grid.tensor * grid.context) % grid.data;
  place.pipeline = device / (grid.tensor * grid.context * grid.data);
  return place;
}

int64_t num_shards(const DeviceGrid& grid) {
  return grid.data * grid.context * (grid.tensor_tokens == TensorTokens::Sharded ? grid.tensor : 1);
}

int64_t shard_of(const DeviceGrid& grid, int64_t device) {
  const DevicePlace place = place_of(grid, device);
  const int64_t shard = place.data * grid.context + place.context;
  return grid.tensor_tokens == TensorTokens::Sharded ? shard * grid.tensor + place.tensor : shard;
}

std::vector<int64_t> token_group(const DeviceGrid& grid, int64_t device) {
  const DevicePlace own = place_of(grid, device);
  std::vector<int64_t> members;
  for (int64_t other = 0; other < num_devices(grid); ++other) {
    const DevicePlace place = place_of(grid, other);
    if (place.pipeline != own.pipeline) continue;
    // Replicas hold the same tokens: each adds up with the replicas of its own kind.
    if (grid.tensor_tokens == TensorTokens::Replicated && place.tensor != own.tensor) continue;
    members.push_back(other);
  }
  return members;
}

std::vector<int64_t> layers_of_stage(const DeviceGrid& grid, int64_t stage, int64_t num_layers) {
  const int64_t each = num_layers / grid.pipeline;
  const int64_t longer = num_layers % grid.pipeline;
  const int64_t begin = stage * each + std::min(stage, longer);
  std::vector<int64_t> layers;
  for (int64_t layer = begin; layer < begin + each + (stage < longer ? 1 : 0); ++layer) layers.push_back(layer);
  return layers;
}

}  // namespace switchyard::conform
