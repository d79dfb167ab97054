// The contract over processes. Started by ctest: mpirun -n N mpi_contract N MODE, one of contract, progress_thread, time_limit, loop
// and loop_with_limit.
// A world of another size fails.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <unistd.h>

#include "contract.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"

namespace {

using namespace switchyard;

void run_contract(Communicator& world) {
  for (const test::ContractCase& each : test::contract_cases()) {
    each.run(world);
    world.barrier();
  }
}

// Rank 0 arrives and goes no further, as one that is stopped in a large transfer: its data is what the others lack.
void check_late_data(Communicator& world) {
  const std::unique_ptr<Communicator> part = world.split(0, 0);
  part->set_time_limit(std::chrono::milliseconds(300));
  // Until the program ends: after a call was given up, another rank may still read them.
  static std::vector<double> values(100000);
  Pending begun = part->start_all_reduce_sum(std::span(values));  // without a progress thread it moves in wait() only
  world.barrier();
  std::string text;
  try {
    if (world.rank() != 0) begun.wait();
  } catch (const CommError& error) {
    text = error.what();
  }
  test::require(world.rank() == 0 || text.find("all ranks arrived, but data of rank") != std::string::npos,
                "no word of the rank whose data is missing: " + text);
  world.barrier();
  begun = Pending();  // of rank 0, which takes what the others sent; so they stay until it has
  world.barrier();
}

// Sums until somebody dies; tells its process id so that a test can see to that, and now and then that it goes on.
void sum_for_ever(Communicator& world) {
  std::printf("rank %ld has process %ld\n", static_cast<long>(world.rank()), static_cast<long>(getpid()));
  std::fflush(stdout);
  for (int64_t step = 0;; ++step) {
    world.set_step(step);
    std::vector<double> values(20000, 1.0);
    world.all_reduce_sum(values);
    if (world.rank() > 0 || step % 500 != 0) continue;
    std::printf("step %ld\n", static_cast<long>(step));
    std::fflush(stdout);
  }
}

void run(Communicator& world, int64_t expected_size, const std::string& mode) {
  test::require(world.size() == expected_size,
                "expected a world of " + std::to_string(expected_size) + " ranks, got " + std::to_string(world.size()));
  if (mode == "contract" || mode == "progress_thread") {
    run_contract(world);
  } else if (mode == "time_limit") {
    test::check_time_limit(world);
    check_late_data(world);
  } else if (mode == "loop") {
    sum_for_ever(world);
  } else if (mode == "loop_with_limit") {
    world.set_time_limit(std::chrono::seconds(2));
    sum_for_ever(world);
  } else {
    test::require(false, "unknown mode " + mode);
  }
  if (world.rank() == 0) std::printf("%s holds on %ld ranks\n", mode.c_str(), static_cast<long>(world.size()));
  std::fflush(stdout);
  world.barrier();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: mpi_contract RANKS MODE\n");
    return 2;
  }
  const std::string mode = argv[2];
  MpiSession session(mode == "progress_thread" ? MpiProgress::Thread : MpiProgress::InCalls);
  try {
    run(*session.world(), std::atol(argv[1]), mode);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    session.end_all_ranks(1);
  }
  return 0;
}
