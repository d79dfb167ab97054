// Stands in for `switchyard train` in the tests of the runner: same arguments, same files, no training.
// model.init_deviation chooses how it behaves: 1 fails; 2 waits for SIGUSR1 when started, finishes when resumed; 3 says it is
// done and leaves no log.

#include <csignal>
#include <cstring>
#include <fstream>
#include <iostream>

#include "switchyard/core/config.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/run_config.hpp"

namespace fs = std::filesystem;

namespace {

constexpr double kFails = 1.0;
constexpr double kWaits = 2.0;
constexpr double kLeavesNoLog = 3.0;

switchyard::StartRecord start_record(const switchyard::RunConfig& config) {
  switchyard::StartRecord record;
  record.name = config.name;
  record.arm = config.arm;
  record.seed = config.seed;
  record.total_steps = config.steps;
  const fs::path manifest = fs::path(config.data.path) / "manifest.json";
  record.data_hash = fs::exists(manifest) ? switchyard::sha256_file(manifest) : "none";
  return record;
}

void wait_for_termination() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGUSR1);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  std::cout << R"({"kind": "step", "step": 1, "total_steps": 4, "loss": 2.5, "tokens_per_second": 100})" << std::endl;
  int received = 0;
  sigwait(&signals, &received);
  std::cout << R"({"kind": "end", "reason": "interrupted", "step": 2})" << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool resumed = arguments.at(0) == "--resume";
  const fs::path folder = resumed ? arguments.at(1) : arguments.at(2);
  switchyard::RunConfig config;
  switchyard::read_config(switchyard::parse_config_file(resumed ? folder / "config.toml" : fs::path(arguments.at(0))), config);
  const double behaviour = config.model.init_deviation;
  if (behaviour == kFails) {
    std::cerr << "first line\nthe reason it failed\n";
    return 3;
  }
  if (behaviour == kLeavesNoLog) return 0;
  fs::create_directories(folder);
  std::ofstream(folder / "config.toml") << switchyard::to_toml(config);
  std::ofstream(folder / "starts", std::ios::app) << (resumed ? "resume" : "start") << " " << std::getenv("OMP_NUM_THREADS") << "\n";
  switchyard::RunLogWriter log(folder / "log.jsonl", 0);
  log.add(start_record(config));
  switchyard::EndRecord end;
  end.step = config.steps;
  end.reason = "done";
  if (behaviour == kWaits && !resumed) {
    wait_for_termination();
    end.reason = "interrupted";
  } else {
    switchyard::EvaluationRecord evaluation;
    evaluation.step = config.steps;
    evaluation.sequences = 600;
    evaluation.specialization = config.balance.coefficient + 0.01 * static_cast<double>(config.seed);
    log.add(evaluation);
  }
  log.add(end);
  return end.reason == "done" ? 0 : 1;
}
