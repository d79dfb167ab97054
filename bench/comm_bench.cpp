// What a sum over ranks costs, and whether it hides behind computation.
//   comm_bench                                  2 thread ranks
//   mpirun -n 2 comm_bench [--progress-thread]  processes; beside it MPI_Allreduce alone, where it was built with MPI
// One line a case on rank 0: median over rounds of the slowest rank, in microseconds. OMP_NUM_THREADS=1 is meant.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <string_view>
#include <vector>

#ifdef SWITCHYARD_BENCH_MPI
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#endif

#include "switchyard/comm/mpi.hpp"
#include "switchyard/comm/threads.hpp"

namespace {

using namespace switchyard;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Median over rounds of the time of the slowest rank. All start each round together.
double time_rounds(Communicator& comm, int64_t rounds, const std::function<void()>& body) {
  std::vector<double> times;
  std::vector<double> all_R(static_cast<size_t>(comm.size()));
  for (int64_t round = 0; round < rounds + 3; ++round) {
    comm.barrier();
    const auto begin = Clock::now();
    body();
    const std::vector<double> mine = {seconds_since(begin)};
    comm.all_gather(mine, all_R);
    if (round >= 3) times.push_back(std::ranges::max(all_R));
  }
  std::ranges::nth_element(times, times.begin() + std::ssize(times) / 2);
  return times[times.size() / 2] * 1e6;
}

// Arithmetic that touches no memory, so that only the core is shared.
double compute(int64_t turns) {
  double value = 1.0;
  for (int64_t i = 0; i < turns; ++i) value = value * 1.0000001 + 1e-9;
  return value;
}

template <typename T>
void bench_sum(Communicator& comm, const char* type) {
  for (const int64_t length : {1, 64, 1024, 6144, 65536, 262144, 1048576}) {
    std::vector<T> values(static_cast<size_t>(length), T{0});  // sums of zeros do not grow
    const int64_t rounds = std::max<int64_t>(9, std::min<int64_t>(200, 4'000'000 / length));
    const double micros = time_rounds(comm, rounds, [&] { comm.all_reduce_sum(values); });
    if (comm.rank() == 0) std::printf("all_reduce_sum %-6s %8ld  %10.1f us\n", type, static_cast<long>(length), micros);
  }
}

// Compute and sum, one after the other, and the sum started before: the time saved as a share of the sum.
void bench_overlap(Communicator& comm) {
  for (const int64_t length : {6144, 262144, 1048576}) {
    std::vector<float> values(static_cast<size_t>(length), 0.0F);
    volatile double sink = 0.0;
    constexpr int64_t kTurns = 8'000'000;
    const double alone = time_rounds(comm, 15, [&] { sink = compute(kTurns); });
    const double apart = time_rounds(comm, 15, [&] {
      comm.all_reduce_sum(values);
      sink = compute(kTurns);
    });
    const double together = time_rounds(comm, 15, [&] {
      Pending pending = comm.start_all_reduce_sum(values);
      sink = compute(kTurns);
      pending.wait();
    });
    if (comm.rank() == 0) {
      std::printf("overlap float %8ld  compute %.0f us, sum then compute %.0f us, sum behind compute %.0f us: %.0f %% hidden\n",
                  static_cast<long>(length), alone, apart, together, 100.0 * (apart - together) / (apart - alone));
    }
  }
}

void bench_plain_mpi([[maybe_unused]] Communicator& comm) {
#ifdef SWITCHYARD_BENCH_MPI
  for (const int length : {1, 64, 1024, 6144, 65536, 262144, 1048576}) {
    std::vector<int64_t> values(static_cast<size_t>(length), 0);
    const double micros = time_rounds(comm, std::max(9, std::min(200, 4'000'000 / length)), [&] {
      MPI_Allreduce(MPI_IN_PLACE, values.data(), length, MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);
    });
    if (comm.rank() == 0) std::printf("MPI_Allreduce  int64  %8d  %10.1f us\n", length, micros);
  }
#endif
}

void bench_all(Communicator& comm) {
  bench_sum<int64_t>(comm, "int64");
  bench_sum<float>(comm, "float");
  bench_overlap(comm);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (!started_by_mpi()) {
      run_ranks(2, bench_all);
      return 0;
    }
    const bool has_thread = argc > 1 && std::string_view(argv[1]) == "--progress-thread";
    MpiSession session(has_thread ? MpiProgress::Thread : MpiProgress::InCalls);
    const auto world = session.world();
    bench_all(*world);
    bench_plain_mpi(*world);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "comm_bench: %s\n", error.what());
    return 1;
  }
}
