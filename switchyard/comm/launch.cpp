#include "switchyard/comm/launch.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <thread>

#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// A slip of the keyboard would start processes until the machine stands still.
constexpr int64_t kMostRanks = 1024;

}  // namespace

std::vector<std::string> mpirun_command(int64_t num_ranks, int64_t num_threads, const std::vector<std::string>& program) {
  SWITCHYARD_CHECK(num_ranks >= 1 && num_ranks <= kMostRanks, UsageError, num_ranks, " ranks were asked for; expected 1 to ", kMostRanks);
  SWITCHYARD_CHECK(num_threads >= 0 && num_threads <= kMostThreads, UsageError, num_threads,
                   " threads were asked for; expected 1 to ", kMostThreads, ", or 0 for a fair share");
  SWITCHYARD_CHECK(!program.empty(), UsageError, "no program to start was given");
  const int64_t cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  const int64_t threads = num_threads > 0 ? num_threads : std::max<int64_t>(1, cores / num_ranks);
  // Not quiet (-q): mpirun's text buries ours, but it alone says which rank was killed.
  std::vector<std::string> command = {"mpirun",
                                      "--allow-run-as-root",
                                      "--oversubscribe",
                                      "--bind-to",
                                      "none",
                                      "-x",
                                      "OMP_NUM_THREADS=" + std::to_string(threads),
                                      "-n",
                                      std::to_string(num_ranks)};
  command.insert(command.end(), program.begin(), program.end());
  return command;
}

int64_t ranks_on_this_machine() {
  const char* text = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  return text == nullptr ? 1 : std::max<int64_t>(1, std::atoll(text));
}

bool started_by_mpi() {
  constexpr std::array kSetByLaunchers = {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"};
  return std::ranges::any_of(kSetByLaunchers, [](const char* name) { return std::getenv(name) != nullptr; });
}

}  // namespace switchyard
