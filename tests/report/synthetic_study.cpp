#include "synthetic_study.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/measure/load.hpp"

namespace switchyard::testing {
namespace {

using Table = std::vector<std::vector<double>>;

// mt19937_64 gives the same bits everywhere; the standard distributions do not.
class Noise {
 public:
  explicit Noise(uint64_t seed) : bits_(seed) {}
  double uniform() { return static_cast<double>(bits_() >> 11U) * 0x1.0p-53; }
  double centered() { return uniform() + uniform() + uniform() + uniform() - 2.0; }

 private:
  std::mt19937_64 bits_;
};

Table joint_of(const std::vector<std::vector<int64_t>>& counts_NE) {
  Table joint(counts_NE.size());
  for (std::size_t d = 0; d < counts_NE.size(); ++d) {
    double total = 0.0;
    for (const int64_t count : counts_NE[d]) total += static_cast<double>(count);
    for (const int64_t count : counts_NE[d]) {
      joint[d].push_back(static_cast<double>(count) / (total * static_cast<double>(counts_NE.size())));
    }
  }
  return joint;
}

double information_of(const Table& joint) {
  double information = 0.0;
  for (const std::vector<double>& row : joint) {
    double p_row = 0.0;
    for (const double p : row) p_row += p;
    for (std::size_t e = 0; e < row.size(); ++e) {
      double p_expert = 0.0;
      for (const std::vector<double>& other : joint) p_expert += other[e];
      if (row[e] > 0.0) information += row[e] * std::log(row[e] / (p_row * p_expert));
    }
  }
  return information;
}

std::vector<std::vector<int64_t>> make_counts(const SyntheticArm& arm, const SyntheticShape& shape, double focus, Noise& noise) {
  const auto num_domains = shape.domains.size();
  const auto num_experts = static_cast<std::size_t>(shape.num_experts);
  std::vector<std::size_t> place(num_experts);
  for (std::size_t e = 0; e < num_experts; ++e) place[e] = e;
  for (std::size_t e = num_experts - 1; e > 0; --e) {
    std::swap(place[e], place[static_cast<std::size_t>(noise.uniform() * static_cast<double>(e + 1))]);
  }
  std::vector<double> weight(num_experts);
  for (double& value : weight) value = std::exp(arm.tilt * noise.centered());
  std::vector<std::vector<int64_t>> counts(num_domains);
  for (std::size_t d = 0; d < num_domains; ++d) {
    std::vector<double> share(num_experts);
    double total = 0.0;
    for (std::size_t e = 0; e < num_experts; ++e) {
      const bool is_home = place[e] * num_domains / num_experts == d;
      const double owned = is_home ? static_cast<double>(num_domains) : 0.0;
      share[e] = weight[e] * (focus * owned + (1.0 - focus) * std::exp(1.4 * focus * noise.centered()));
      total += share[e];
    }
    for (const double value : share) counts[d].push_back(std::llround(32768.0 * value / total));
  }
  return counts;
}

LayerEvaluation make_layer(int64_t index, const SyntheticArm& arm, const SyntheticShape& shape, double focus, Noise& noise) {
  LayerEvaluation layer;
  layer.layer = index;
  layer.counts_NE = make_counts(arm, shape, focus, noise);
  std::vector<int64_t> sum(static_cast<std::size_t>(shape.num_experts));
  std::vector<LoadMetrics> per_domain;
  for (const auto& row : layer.counts_NE) {
    for (std::size_t e = 0; e < row.size(); ++e) sum[e] += row[e];
    per_domain.push_back(load_metrics(row));
  }
  layer.global = load_metrics(sum);
  layer.micro_batch = mean_load(per_domain);
  const Table joint = joint_of(layer.counts_NE);
  const double num_domains = static_cast<double>(shape.domains.size());
  const double attainable = std::min(std::log(num_domains), std::log(static_cast<double>(shape.num_experts) /
                                                                     static_cast<double>(shape.num_chosen)));
  layer.information = information_of(joint);
  layer.information_null = focus >= 1.0 ? 0.0 : 0.012;
  layer.specialization = (layer.information - layer.information_null) / (attainable - layer.information_null);
  layer.specialization_first_choice = 0.93 * layer.specialization;
  for (std::size_t e = 0; e < sum.size(); ++e) {
    double most = 0.0;
    for (const auto& row : joint) most = std::max(most, row[e]);
    layer.purity += most;
  }
  layer.purity_null = 1.0 / num_domains + 0.07;
  layer.purity_ceiling = 1.0;
  layer.agreement = 0.85 * layer.purity + 0.15 / num_domains;
  for (std::size_t a = 0; a < joint.size(); ++a) {
    std::vector<double>& row = layer.jensen_shannon_NN.emplace_back();
    for (std::size_t b = 0; b < joint.size(); ++b) {
      Table pair = {joint[a], joint[b]};
      for (std::vector<double>& side : pair) {
        for (double& p : side) p *= num_domains / 2.0;
      }
      row.push_back(a == b ? 0.0 : information_of(pair));
    }
  }
  layer.margin = 0.02 + 0.1 * focus;
  return layer;
}

void fill_means(EvaluationRecord& evaluation) {
  std::vector<LoadMetrics> micro_batch;
  std::vector<LoadMetrics> global;
  const auto count = static_cast<double>(evaluation.layers.size());
  for (const LayerEvaluation& layer : evaluation.layers) {
    micro_batch.push_back(layer.micro_batch);
    global.push_back(layer.global);
    evaluation.specialization += layer.specialization / count;
    evaluation.purity += layer.purity / count;
    evaluation.agreement += layer.agreement / count;
    evaluation.margin += layer.margin / count;
  }
  evaluation.micro_batch = mean_load(micro_batch);
  evaluation.global = mean_load(global);
}

EvaluationRecord make_evaluation(const SyntheticArm& arm, const SyntheticShape& shape, int64_t step, uint64_t seed) {
  // One stream for all evaluations of a run: the same experts stay at home in the same domains.
  Noise noise(seed);
  EvaluationRecord evaluation;
  evaluation.step = step;
  evaluation.sequences = 512;
  evaluation.permutations = 200;
  const double age = static_cast<double>(step) / static_cast<double>(shape.total_steps);
  const double focus = arm.focus >= 1.0 ? 1.0 : arm.focus * (1.35 - 0.35 * age);
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    const double depth = arm.focus >= 1.0 ? 1.0 : 0.8 + 0.13 * static_cast<double>(layer);
    evaluation.layers.push_back(make_layer(layer, arm, shape, focus * depth, noise));
  }
  double sum = 0.0;
  for (std::size_t d = 0; d < shape.domains.size(); ++d) {
    const double loss = arm.loss + 1.8 * (1.0 - age) + 1.1 * std::sin(static_cast<double>(2 * d + 1)) + 0.01 * noise.centered();
    evaluation.domains.push_back({shape.domains[d], loss, std::exp(loss), 16384});
    evaluation.tokens += 16384;
    sum += loss;
  }
  evaluation.loss = sum / static_cast<double>(shape.domains.size());
  evaluation.perplexity = std::exp(evaluation.loss);
  fill_means(evaluation);
  return evaluation;
}

StepRecord make_step(const SyntheticArm& arm, const SyntheticShape& shape, int64_t step, Noise& noise) {
  StepRecord record;
  const double age = static_cast<double>(step) / static_cast<double>(shape.total_steps);
  const double start = std::exp(-9.0 * age);
  record.step = step;
  record.tokens = 2048 * step;
  record.loss = arm.loss + (9.1 - arm.loss) * start + 0.05 * noise.centered();
  record.max_vio_step = arm.tilt * (1.0 + 4.0 * start) + 0.05 * noise.uniform();
  record.max_vio_micro_batch = record.max_vio_step + 6.0 * arm.focus * (1.0 + start);
  if (arm.scope != "none") {
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) record.lbl_layers.push_back(1.0 + 0.2 * record.max_vio_step);
    record.lbl = 1.0 + 0.2 * record.max_vio_step;
    record.balance_loss = arm.coefficient * *record.lbl;
  }
  record.learning_rate = 2e-3 * 0.5 * (1.0 + std::cos(3.14159265358979 * age));
  record.gradient_norm = 0.8 + 2.0 * start;
  record.seconds = 0.21 + 0.01 * noise.uniform();
  record.tokens_per_second = 2048.0 / record.seconds;
  return record;
}

}  // namespace

RunInput synthetic_run(const SyntheticArm& arm, int64_t seed, const SyntheticShape& shape) {
  RunInput run;
  run.name = join_text(arm.name, "-seed", seed);
  uint64_t mixed = static_cast<uint64_t>(seed) + 1;
  for (const char c : arm.name) mixed = mixed * 1000003U + static_cast<unsigned char>(c);
  Noise noise(mixed);
  // Seeds differ more than arms, and in the same way for every arm, as in real runs.
  SyntheticArm drawn = arm;
  drawn.loss += 0.05 * static_cast<double>(seed) + 0.006 * noise.centered();
  if (drawn.focus < 1.0) drawn.focus *= 1.0 + 0.08 * noise.centered();

  StartRecord& start = run.log.start;
  start.name = run.name;
  start.arm = arm.name;
  start.seed = seed;
  start.total_steps = shape.total_steps;
  start.scope = arm.scope;
  start.method = arm.scope == "none" ? "none" : "lbl";
  start.coefficient = arm.coefficient;
  start.router = arm.router;
  start.domains = shape.domains;
  start.num_layers = shape.num_layers;
  start.num_experts = shape.num_experts;
  start.num_chosen = shape.num_chosen;
  start.parameters = 5'783'040;
  start.compute_type = "bf16";
  start.data_hash = "3f7a0c5e9b1d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
  start.version = "0.1.0";
  start.commit = "0123abc";
  start.torch_version = "2.13.0";
  start.processor = "synthetic";
  start.time_utc = "2026-01-01T00:00:00Z";
  start.command = join_text("switchyard train ", arm.name, ".toml --set seed=", seed);
  run.config_toml = join_text("name = \"", arm.name, "\"\nseed = ", seed, "\n\n[balance]\nscope = \"", arm.scope,
                              "\"\ncoefficient = ", arm.coefficient, "\n\n[data]\nsequence_length = 256\n\n[model]\nwidth = 128\n");
  for (int64_t step = 1; step <= shape.total_steps; ++step) run.log.steps.push_back(make_step(drawn, shape, step, noise));
  for (const int64_t step : shape.evaluated_steps) run.log.evaluations.push_back(make_evaluation(drawn, shape, step, mixed));
  run.log.end = EndRecord{shape.total_steps, "done", 70.0, 63.0};
  return run;
}

std::vector<RunInput> synthetic_demo(const SyntheticShape& shape) {
  const SyntheticArm wide = {.name = "optimizer_batch", .focus = 0.52, .tilt = 0.16, .loss = 4.90};
  const SyntheticArm narrow = {.name = "micro_batch", .scope = "micro_batch", .focus = 0.09, .tilt = 0.17, .loss = 4.94};
  std::vector<RunInput> runs;
  for (const int64_t seed : {0, 1}) {
    runs.push_back(synthetic_run(wide, seed, shape));
    runs.push_back(synthetic_run(narrow, seed, shape));
  }
  const std::vector<SyntheticArm> others = {
      {.name = "no_balancing", .scope = "none", .coefficient = 0.0, .focus = 0.4, .tilt = 1.1, .loss = 4.91},
      {.name = "prescribed", .router = "prescribed", .scope = "none", .coefficient = 0.0, .focus = 1.0, .tilt = 0.0, .loss = 4.88},
      {.name = "frozen_random", .router = "frozen_random", .scope = "none", .coefficient = 0.0, .focus = 0.4, .tilt = 0.9, .loss = 4.91},
      {.name = "random", .router = "random", .scope = "none", .coefficient = 0.0, .focus = 0.0, .tilt = 0.01, .loss = 4.95},
      {.name = "prescribed_shuffled", .router = "prescribed_shuffled", .scope = "none", .coefficient = 0.0, .focus = 0.16, .tilt = 0.2,
       .loss = 5.0}};
  for (const SyntheticArm& arm : others) runs.push_back(synthetic_run(arm, 0, shape));
  runs.front().log.notices.push_back({0, "step 1 is complete: this scope needs no earlier step"});
  return runs;
}

void write_run_folder(const std::filesystem::path& folder, const RunInput& run) {
  std::filesystem::create_directories(folder);
  write_file_atomically(folder / "config.toml", run.config_toml);
  std::filesystem::remove(folder / "log.jsonl");
  RunLogWriter log(folder / "log.jsonl", 0);
  log.add(run.log.start);
  for (const NoticeRecord& notice : run.log.notices) log.add(notice);
  std::size_t next = 0;
  for (const StepRecord& step : run.log.steps) {
    log.add(step);
    for (; next < run.log.evaluations.size() && run.log.evaluations[next].step <= step.step; ++next) log.add(run.log.evaluations[next]);
  }
  if (run.log.end) log.add(*run.log.end);
}

}  // namespace switchyard::testing
