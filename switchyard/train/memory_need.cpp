#include "switchyard/train/memory_need.hpp"

#include <unistd.h>

#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/model/flops.hpp"

namespace switchyard {
namespace {

constexpr double kGigabyte = 1e9;

constexpr const char* kSizes = "model.vocab_size, width, num_layers, num_experts, expert_width, shared_expert_width, dense_width, num_heads, "
                               "num_kv_heads or head_width";

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

double least_step_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks) {
  constexpr double kBytesOfToken = 5 * 8.0;  // the five int64 of Batch
  const BatcherConfig& batches = config.data.batcher;
  const double micro_batch = static_cast<double>(batches.sequences_per_micro_batch) * static_cast<double>(batches.sequence_length);
  const double step = micro_batch * static_cast<double>(batches.micro_batches) / static_cast<double>(num_ranks);
  const double waiting = config.execution.forward == ForwardPacking::Together ? step : micro_batch;
  const double number = compute == ComputeType::Float64 ? 8.0 : compute == ComputeType::BFloat16 ? 2.0 : 4.0;
  return kBytesOfToken * step +
         number * waiting * static_cast<double>(config.model.num_layers) * static_cast<double>(config.model.width);
}

void check_memory(const RunConfig& config, ComputeType compute, int64_t num_ranks, int64_t ranks_here, double memory) {
  const WeightCounts weights = count_weights(config.model);
  const double model = static_cast<double>(ranks_here) * least_memory(config, compute, num_ranks);
  const double step = static_cast<double>(ranks_here) * least_step_memory(config, compute, num_ranks);
  const std::string on_ranks = ranks_here > 1 ? join_text(" on ", ranks_here, " ranks") : "";
  SWITCHYARD_CHECK(model < memory, ConfigError, "the model has ", (weights.experts + weights.others) / 1e6,
                   " million weights: with their moments ", in_gigabytes(model), " GB", on_ranks, ", but this machine has ",
                   in_gigabytes(memory), "; expected a smaller model: ", kSizes);
  SWITCHYARD_CHECK(model + step < memory, ConfigError, "the tokens of a step need ", in_gigabytes(step), " GB at least", on_ranks,
                   ", beside ", in_gigabytes(model), " GB for weights and moments, but this machine has ", in_gigabytes(memory),
                   "; expected fewer data.micro_batches, sequences_per_micro_batch or a smaller sequence_length, or "
                   "execution.forward = \"separate\" where it is together");
}

}  // namespace switchyard
