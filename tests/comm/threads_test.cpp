// What only ranks in one process can show: who fails, who is woken, whose memory is touched.
#include "switchyard/comm/threads.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard::test {
namespace {

using testing::HasSubstr;

std::string error_of(int64_t ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_ranks(ranks, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST(RunRanks, GivesEachThreadItsRank) {
  std::vector<std::atomic<int>> seen_R(4);
  run_ranks(4, [&](Communicator& comm) {
    EXPECT_EQ(comm.size(), 4);
    EXPECT_EQ(comm.describe(), "rank " + std::to_string(comm.rank()) + " of 4");
    ++seen_R[static_cast<size_t>(comm.rank())];
  });
  for (const std::atomic<int>& seen : seen_R) EXPECT_EQ(seen, 1);
  EXPECT_THROW(run_ranks(0, [](Communicator&) {}), UsageError);
}

TEST(RunRanks, BarrierHoldsEveryoneBack) {
  std::atomic<int> arrived = 0;
  run_ranks(4, [&](Communicator& comm) {
    for (int round = 1; round <= 20; ++round) {
      ++arrived;
      comm.barrier();
      EXPECT_GE(arrived, 4 * round);
      comm.barrier();
    }
  });
}

TEST(RunRanks, RethrowsTheFirstErrorAndWakesTheOthers) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::string> texts_R(4);
  const auto body = [&](Communicator& comm) {
    comm.set_step(5);
    comm.barrier();
    if (comm.rank() == 2) throw DataError("shard 7 is torn");
    try {
      std::vector<int64_t> values(4);
      comm.all_reduce_sum(values);
    } catch (const CommError& error) {
      texts_R[static_cast<size_t>(comm.rank())] = error.what();
      throw;
    }
  };
  EXPECT_THROW(run_ranks(4, body), DataError);
  for (const size_t rank : {0, 1, 3}) {
    EXPECT_THAT(texts_R[rank], HasSubstr("rank " + std::to_string(rank) + " of 4, all_reduce_sum of 4 int64 (call 1, step 5)"));
    EXPECT_THAT(texts_R[rank], HasSubstr("rank 2 failed: shard 7 is torn"));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

// The rank that fails has an operation in flight, whose memory dies with its stack.
TEST(RunRanks, ReportsTheCauseAlsoWithOperationsInFlight) {
  for (int round = 0; round < 50; ++round) {
    const std::string text = error_of(3, [](Communicator& comm) {
      std::vector<int64_t> first(40000, 1), second(40000, 1);
      Pending a = comm.start_all_reduce_sum(first);
      if (comm.rank() == 1) throw std::runtime_error("boom");
      Pending b = comm.start_all_reduce_sum(second);
      a.wait();
      b.wait();
    });
    EXPECT_EQ(text, "boom");
  }
}

TEST(RunRanks, WakesParts) {
  const std::string text = error_of(4, [](Communicator& comm) {
    const std::unique_ptr<Communicator> part = comm.split(comm.rank() / 2, 0);
    if (comm.rank() == 3) throw std::runtime_error("boom");
    if (comm.rank() == 2) part->barrier();
    comm.barrier();
  });
  EXPECT_EQ(text, "boom");
}

TEST(RunRanks, NamesARankThatReturnedEarly) {
  const std::string text = error_of(3, [](Communicator& comm) {
    if (comm.rank() == 1) return;
    comm.barrier();
  });
  EXPECT_THAT(text, HasSubstr("rank 1 has returned without joining in"));
}

// A container that is frozen, a machine that is suspended: here for longer than the limit, by which nobody was late.
TEST(RunRanks, APauseOfTheWholeProcessIsNotCounted) {
  constexpr std::chrono::milliseconds kLimit{2000}, kPause{2600}, kMoment{100};
  std::array<int, 2> ready{}, go{};
  ASSERT_TRUE(pipe(ready.data()) == 0 && pipe(go.data()) == 0);
  const pid_t child = fork();
  if (child == 0) {
    const std::string text = error_of(2, [&](Communicator& comm) {
      comm.set_time_limit(kLimit);
      char sign = 'r';
      const bool waits = comm.rank() == 1;  // until the pause is over
      if (waits && (write(ready[1], &sign, 1) != 1 || read(go[0], &sign, 1) != 1)) throw std::runtime_error("no pipe");
      comm.barrier();
    });
    _exit(text == "no error" ? 0 : 1);
  }
  char sign = 0;
  ASSERT_EQ(read(ready[0], &sign, 1), 1);
  pollfd handle{static_cast<int>(syscall(SYS_pidfd_open, child, 0)), POLLIN, 0};
  const auto lives_for = [&handle](std::chrono::milliseconds time) { return poll(&handle, 1, static_cast<int>(time.count())) == 0; };
  EXPECT_TRUE(lives_for(kMoment));  // in which the other rank has begun to wait
  kill(child, SIGSTOP);
  EXPECT_TRUE(lives_for(kPause));
  kill(child, SIGCONT);
  EXPECT_TRUE(lives_for(kMoment));  // in which it could give up
  EXPECT_EQ(write(go[1], &sign, 1), 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (const int descriptor : {ready[0], ready[1], go[0], go[1], handle.fd}) close(descriptor);
}

TEST(RunRanks, DroppingACallEndsTheGroup) {
  std::atomic<bool> has_dropped = false;
  const std::string text = error_of(2, [&](Communicator& comm) {
    std::vector<int64_t> values(10);
    if (comm.rank() == 0) {
      { Pending dropped = comm.start_all_reduce_sum(values); }
      has_dropped = true;
      EXPECT_THROW(comm.barrier(), CommError);
    } else {
      // Not earlier: a call that all have started is completed when it is dropped.
      while (!has_dropped) std::this_thread::yield();
      comm.all_reduce_sum(values);
    }
  });
  EXPECT_THAT(text, HasSubstr("rank 0 of 2 dropped its all_reduce_sum of 10 int64 (call 0) without waiting"));
}

// The others' errors come first, and are not what went wrong.
TEST(RunRanks, PrefersTheErrorOfTheRankThatCausedIt) {
  std::atomic<bool> has_dropped = false, was_told = false;
  const std::string text = error_of(2, [&](Communicator& comm) {
    std::vector<int64_t> values(10);
    if (comm.rank() == 0) {
      { Pending dropped = comm.start_all_reduce_sum(values); }
      has_dropped = true;
      while (!was_told) std::this_thread::yield();
      throw std::runtime_error("boom");
    }
    // Not earlier: a call that all have started is completed when it is dropped, and nobody would be told of anything.
    while (!has_dropped) std::this_thread::yield();
    try {
      comm.all_reduce_sum(values);
    } catch (const CommError&) {
      was_told = true;
      throw;
    }
  });
  EXPECT_EQ(text, "boom");
}

// When all have arrived the others may be at work on the memory: dropping the call must leave nothing to be done with it.
TEST(RunRanks, DroppingACallThatAllHaveStartedCompletesIt) {
  std::atomic<bool> has_started = false, was_checked = false;
  run_ranks(2, [&](Communicator& comm) {
    std::vector<int64_t> values(100000, comm.rank() + 1);
    if (comm.rank() == 0) {
      while (!has_started) std::this_thread::yield();
      { Pending dropped = comm.start_all_reduce_sum(values); }
      EXPECT_EQ(values, std::vector<int64_t>(100000, 3));
      was_checked = true;
    } else {
      Pending pending = comm.start_all_reduce_sum(values);
      has_started = true;
      while (!was_checked) std::this_thread::yield();
      pending.wait();
      EXPECT_EQ(values, std::vector<int64_t>(100000, 3));
    }
  });
}

TEST(RunRanks, PartsAreNamedByBothRanks) {
  run_ranks(4, [](Communicator& comm) {
    const std::unique_ptr<Communicator> part = comm.split(comm.rank() / 2, 0);
    EXPECT_EQ(part->describe(),
              "rank " + std::to_string(comm.rank() % 2) + " of 2 (world rank " + std::to_string(comm.rank()) + " of 4)");
  });
}

// One rank starts, computes long, and waits late: the others must not wait for its wait.
TEST(RunRanks, AsynchronousSumsNeedNoWaiterOnTheOtherSide) {
  std::atomic<bool> others_done = false;
  run_ranks(2, [&](Communicator& comm) {
    std::vector<int64_t> values(300000, comm.rank() + 1);
    Pending pending = comm.start_all_reduce_sum(values);
    if (comm.rank() == 0) {
      const auto begin = std::chrono::steady_clock::now();
      while (!others_done && std::chrono::steady_clock::now() - begin < std::chrono::seconds(20)) {
      }
      EXPECT_TRUE(others_done) << "rank 1 could not complete while rank 0 computed";
    }
    pending.wait();
    others_done = true;
    EXPECT_EQ(values, std::vector<int64_t>(300000, 3));
  });
}

}  // namespace
}  // namespace switchyard::test
