#include "switchyard/train/build_info.hpp"

#include <torch/version.h>

#include <fstream>
#include <thread>

#include "switchyard/train/commit.hpp"  // written at build time, see CMakeLists.txt

namespace switchyard {
namespace {

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace

BuildInfo build_info() {
  const unsigned count = std::thread::hardware_concurrency();
  return {SWITCHYARD_VERSION, kSwitchyardCommit, TORCH_VERSION, processor_name() + ", " + std::to_string(count) + " threads"};
}

}  // namespace switchyard
