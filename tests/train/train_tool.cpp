// A process that trains, for tests that need a real one (tests/python/test_train_process.py):
//
//   train_tool data FOLDER                               writes the made-up data set
//   train_tool run DATA RUN_FOLDER [--resume] [KEY=VALUE ...]   prints "step N" after each step; SIGTERM ends it cleanly

#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>

#include "switchyard/train/run.hpp"
#include "tests/train/fixtures.hpp"

namespace {

std::atomic<bool> stop_requested{false};

class PrintSteps : public switchyard::ProgressSink {
 public:
  void on_step(const switchyard::StepRecord& record) override {
    std::printf("step %lld\n", static_cast<long long>(record.step));
    std::fflush(stdout);
  }
};

int run(int argc, char** argv) {
  switchyard::RunOptions options;
  options.folder = argv[3];
  options.stop = &stop_requested;
  std::vector<std::string> overrides;
  for (int i = 4; i < argc; ++i) {
    if (std::strcmp(argv[i], "--resume") == 0) {
      options.resume = switchyard::Resume::Yes;
    } else {
      overrides.emplace_back(argv[i]);
    }
  }
  switchyard::RunConfig config = switchyard::tiny_run(argv[2]);
  switchyard::read_config(switchyard::parse_config_text("", "overrides", overrides), config);
  PrintSteps progress;
  const switchyard::RunResult result = switchyard::run_training(config, options, progress);
  std::printf("%s\n", result.reason == switchyard::EndReason::Done ? "done" : "interrupted");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGTERM, [](int) { stop_requested = true; });
  try {
    if (argc == 3 && std::strcmp(argv[1], "data") == 0) {
      switchyard::write_test_dataset(argv[2]);
      return 0;
    }
    if (argc >= 4 && std::strcmp(argv[1], "run") == 0) return run(argc, argv);
    std::fprintf(stderr, "use: train_tool data FOLDER | train_tool run DATA RUN_FOLDER [--resume] [KEY=VALUE ...]\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
