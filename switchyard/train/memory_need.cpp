#include "switchyard/train/memory_need.hpp"

#include <unistd.h>

#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/model/flops.hpp"

namespace switchyard {
namespace {

constexpr double kGigabyte = 1e9;

double in_gigabytes(double bytes) { return std::round(bytes / kGigabyte * 10.0) / 10.0; }

}  // namespace

double machine_memory() {
  return static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

double least_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks) {
  const WeightCounts weights = count_weights(config.model);
  const auto ranks = static_cast<double>(num_ranks);
  const double experts_here = config.execution.experts == ExpertPlacement::Sharded ? weights.experts / ranks : weights.experts;
  const double master = compute == ComputeType::Float64 ? 8.0 : 4.0;
  const double moment = config.optimizer.moments == MomentType::BFloat16 ? 2.0 : master;
  return master * (weights.others + experts_here) + 2.0 * moment * (weights.others + weights.experts) / ranks;
}

void check_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks, int64_t ranks_here, double memory) {
  const WeightCounts weights = count_weights(config.model);
  const double need = static_cast<double>(ranks_here) * least_memory(config, compute, num_ranks);
  SWITCHYARD_CHECK(need < memory, ConfigError, "the model has ", (weights.experts + weights.others) / 1e6,
                   " million weights: with their moments ", in_gigabytes(need), " GB",
                   ranks_here > 1 ? join_text(" on ", ranks_here, " ranks") : "", ", but this machine has ", in_gigabytes(memory),
                   "; expected a smaller model.vocab_size, width, num_layers, num_experts or expert_width");
}

}  // namespace switchyard
