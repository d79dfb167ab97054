#pragma once
// Run logs with plausible numbers, for tests and for work on the report's looks. Same argument, same logs.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/report/report.hpp"

namespace switchyard::testing {

struct SyntheticArm {
  std::string name;
  std::string router = "top_k";
  std::string scope = "optimizer_batch";
  double coefficient = 0.1;
  double focus = 0.5;   // 0: every domain uses all experts alike; 1: each has its own
  double tilt = 0.3;    // unevenness of the experts' total load
  double loss = 4.9;
};

struct SyntheticShape {
  std::vector<std::string> domains = {"chess", "cpp", "de", "dna", "fr", "ja", "metamath", "ru"};
  int64_t num_experts = 16;
  int64_t num_chosen = 2;
  int64_t num_layers = 4;
  int64_t total_steps = 300;
  std::vector<int64_t> evaluated_steps = {75, 150, 300};
};

/// One run, finished. Its measures agree with its counts.
[[nodiscard]] RunInput synthetic_run(const SyntheticArm& arm, int64_t seed, const SyntheticShape& shape = {});

/// The arms of the demo: optimizer_batch and micro_batch on seeds 0 and 1; no balancing, floors and ceiling on seed 0.
[[nodiscard]] std::vector<RunInput> synthetic_demo(const SyntheticShape& shape = {});

/// A run folder as train leaves it: log.jsonl and config.toml.
void write_run_folder(const std::filesystem::path& folder, const RunInput& run);

}  // namespace switchyard::testing
