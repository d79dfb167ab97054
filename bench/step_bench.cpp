// Whole training steps on random tokens: forward, balancing, backward, clipping, AdamW. Prints one JSON line.
//   step_bench SHAPES.json NAME [WARM_UP] [STEPS] [sharded] [bfloat16_moments] [float32]
//   mpirun -n 2 step_bench ...      the rows divided among the ranks, with `sharded` the experts too; rank 0 tells
// OMP_NUM_THREADS sets the threads. bench/peers/compare.py runs it beside other people's models.
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/kernels/memory.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/model/flops.hpp"
#include "switchyard/train/adamw.hpp"
#include "switchyard/train/execution_config.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/run_ranks.hpp"
#include "switchyard/train/step.hpp"
#include "switchyard/train/update_shares.hpp"

namespace {

using namespace switchyard;

struct Shape {
  ModelConfig model;
  int64_t rows = 0, positions = 0;
};

Shape read_shape(const std::string& path, const std::string& name) {
  const nlohmann::json all = nlohmann::json::parse(std::ifstream(path));
  SWITCHYARD_CHECK(all.contains(name), UsageError, path, " has no shape '", name, "'; see its keys");
  const nlohmann::json& given = all[name];
  Shape shape;
  shape.model.width = given.at("width");
  shape.model.num_layers = given.at("layers");
  shape.model.num_experts = given.at("experts");
  shape.model.num_chosen = given.at("chosen");
  shape.model.expert_width = given.at("expert_width");
  shape.model.vocab_size = given.at("vocabulary");
  shape.model.num_heads = given.at("heads");
  shape.model.num_kv_heads = given.at("kv_heads");
  shape.model.head_width = given.at("head_width");
  shape.positions = given.at("positions");
  shape.rows = given.at("rows");
  return shape;
}

Batch random_batch(const Shape& shape) {
  Rng rng(1, "bench");
  Batch batch;
  batch.ids_BS = at::zeros({shape.rows, shape.positions}, at::kLong);
  for (int64_t i = 0; i < batch.ids_BS.numel(); ++i) {
    batch.ids_BS.mutable_data_ptr<int64_t>()[i] =
        static_cast<int64_t>(rng.below(static_cast<uint64_t>(shape.model.vocab_size)));
  }
  batch.targets_BS = batch.ids_BS.roll(-1, 1);
  batch.segment_T = at::arange(shape.rows, at::kLong).repeat_interleave(shape.positions);
  batch.domain_T = at::zeros({shape.rows * shape.positions}, at::kLong);
  batch.document_T = batch.segment_T;
  batch.segment_tokens.assign(static_cast<size_t>(shape.rows), shape.positions);
  batch.segment_micro_batch.assign(static_cast<size_t>(shape.rows), 0);
  return batch;
}

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// As /proc/self/stat tells it, to a hundredth of a second: loading the libraries counts as well.
double seconds_since_start_of_process() {
  std::string stat;
  std::getline(std::ifstream("/proc/self/stat"), stat);
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string field;
  for (int number = 3; number <= 22; ++number) fields >> field;  // 22: when it started, in ticks since the machine did
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double uptime = static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  return uptime - std::stod(field) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{1024} * usage.ru_maxrss;
}

struct Options {
  int64_t warm_up = 3, steps = 5;
  ExpertPlacement experts = ExpertPlacement::Replicated;
  ComputeType compute = ComputeType::Auto;
  OptimizerConfig optimizer;
};

Options read_options(int count, char** values) {
  Options options;
  const auto number = [&](int place) {
    const std::string text = values[place];
    SWITCHYARD_CHECK(!text.empty() && text.find_first_not_of("0123456789") == std::string::npos, UsageError, "'", text,
                     "' stands where the number of steps is expected: SHAPES.json NAME WARM_UP STEPS, words after these");
    return static_cast<int64_t>(std::stoll(text));
  };
  if (count > 3) options.warm_up = number(3);
  if (count > 4) options.steps = number(4);
  for (int i = 5; i < count; ++i) {
    const std::string_view word = values[i];
    if (word == "sharded") {
      options.experts = ExpertPlacement::Sharded;
    } else if (word == "bfloat16_moments") {
      options.optimizer.moments = MomentType::BFloat16;
    } else if (word == "float32") {
      options.compute = ComputeType::Float32;
    } else {
      throw UsageError("unknown word '" + std::string(word) + "'");
    }
  }
  return options;
}

nlohmann::json measure(Shape shape, const Options& options, Communicator* comm) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  Decoder model(shape.model, resolve_compute_type(options.compute), /*num_domains=*/1, /*seed=*/1,
                options.experts == ExpertPlacement::Sharded ? comm : nullptr);
  RunRanks ranks(comm);
  SWITCHYARD_CHECK(shape.rows % ranks.size() == 0, UsageError, shape.rows, " rows cannot be divided among ", ranks.size(), " ranks");
  shape.rows /= ranks.size();
  share_updates(model.parameters(), ranks.comm());
  AdamW optimizer(model.parameters(), options.optimizer);
  const std::vector<Batch> batches = {random_batch(shape)};
  BalanceConfig balance;
  balance.scope = Scope{ScopeKind::OptimizerBatch};
  BalanceState state;
  nlohmann::json result = {{"wall_seconds", nlohmann::json::array()}, {"processor_seconds", nlohmann::json::array()}};
  result["make_seconds"] = std::chrono::duration<double>(Clock::now() - begin).count();  // model and optimizer, part of the first step
  for (int64_t step = 0; step < options.warm_up + options.steps; ++step) {
    const Clock::time_point start = Clock::now();
    const double processor = processor_seconds();
    const StepResult done = run_step(model, balance, state, batches, {}, /*seed=*/1, step, ranks.balance());
    sum_gradients(model.parameters(), ranks.comm());
    const double norm = global_gradient_norm(model.parameters(), ranks.comm());
    optimizer.step(1e-3, clip_scale(norm, options.optimizer.clip_norm));
    gather_updates(model.parameters(), ranks.comm());
    const Clock::time_point end = Clock::now();
    if (step == 0) result["first_step_seconds"] = seconds_since_start_of_process();
    result["loss"] = done.loss;
    if (step < options.warm_up) continue;
    result["wall_seconds"].push_back(std::chrono::duration<double>(end - start).count());
    result["processor_seconds"].push_back(processor_seconds() - processor);
  }
  result["peak_bytes"] = peak_bytes();
  result["step_flops"] = 3.0 * forward_flops(shape.model, ranks.size() * shape.rows * shape.positions, shape.positions);
  result["ranks"] = ranks.size();
  result["threads"] = at::get_num_threads();
  result["compute_type"] = to_string(model.compute_type());
  return result;
}

}  // namespace

int main(int count, char** values) {
  try {
    keep_freed_memory();
    if (count < 3) throw UsageError("usage: step_bench SHAPES.json NAME [WARM_UP] [STEPS] [sharded] [bfloat16_moments] [float32]");
    const Options options = read_options(count, values);
    const Shape shape = read_shape(values[1], values[2]);
    std::unique_ptr<MpiSession> session;
    std::unique_ptr<Communicator> comm;
    if (started_by_mpi()) {
      session = std::make_unique<MpiSession>(MpiProgress::InCalls);
      comm = session->world();
    }
    const nlohmann::json result = measure(shape, options, comm.get());
    if (comm == nullptr || comm->rank() == 0) std::printf("%s\n", result.dump().c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "step_bench: %s\n", error.what());
    return 1;
  }
}
