#include "switchyard/comm/agreement.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "switchyard/comm/call.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename Function>
std::string comm_error_of(Function&& function) {
  try {
    function();
  } catch (const CommError& error) {
    return error.what();
  }
  return "no error";
}

TEST(Agreement, GathersTextsOfAnyLength) {
  run_ranks(3, [](Communicator& comm) {
    const std::vector<std::string> mine_R = {"", "one", std::string(9000, 'x')};
    EXPECT_EQ(all_gather_text(comm, mine_R[static_cast<size_t>(comm.rank())]), mine_R);
    EXPECT_THAT(all_gather_text(comm, ""), ElementsAre("", "", ""));
  });
}

TEST(Agreement, GathersListsOfAnyLength) {
  run_ranks(3, [](Communicator& comm) {
    const std::vector<std::vector<double>> mine_R = {{0.5, 1.5}, {}, {2.5}};
    const std::vector<int64_t> lengths_R = {2, 0, 1};
    const std::vector<double>& mine = mine_R[static_cast<size_t>(comm.rank())];
    EXPECT_EQ(all_gather_lists<double>(comm, mine), mine_R);
    EXPECT_EQ(all_gather_lists<double>(comm, mine, lengths_R), mine_R);
    EXPECT_THAT(all_gather_lists<double>(comm, {}), ElementsAre(ElementsAre(), ElementsAre(), ElementsAre()));
  });
}

TEST(Agreement, TellsEveryRankTheProblems) {
  run_ranks(4, [](Communicator& comm) {
    throw_if_any(comm, "");
    comm.set_step(3);
    const std::string problem = comm.rank() >= 2 ? "16 experts, expected " + std::to_string(comm.rank()) : "";
    EXPECT_EQ(comm_error_of([&] { throw_if_any(comm, problem); }),
              comm.describe() + ", step 3: rank 2: 16 experts, expected 2; rank 3: 16 experts, expected 3");
    comm.barrier();
  });
}

TEST(Agreement, RequiresEqualValues) {
  run_ranks(3, [](Communicator& comm) {
    require_equal(comm, "number of experts", 16);
    EXPECT_EQ(comm_error_of([&] { require_equal(comm, "number of experts", comm.rank() == 1 ? 8 : 16); }),
              comm.describe() + ": the ranks differ in number of experts: rank 0 has 16, rank 1 has 8, rank 2 has 16");
    comm.barrier();
  });
  EXPECT_NO_THROW(require_equal(*make_solo_communicator(), "seed", 7));
}

TEST(CallHeader, SurvivesTheWire) {
  CallHeader header;
  header.operation = Operation::AllToAll;
  header.type = ElementType::Float;
  header.root = 3;
  header.sequence = int64_t{1} << 40;
  header.step = 12;
  header.send_bytes_R = {1, 2, 3};
  header.receive_bytes_R = {4, 5, 6};
  const CallHeader copy = decode(encode(header));
  EXPECT_EQ(copy.operation, header.operation);
  EXPECT_EQ(copy.type, header.type);
  EXPECT_EQ(copy.root, 3);
  EXPECT_EQ(copy.sequence, header.sequence);
  EXPECT_EQ(copy.step, 12);
  EXPECT_EQ(copy.send_bytes_R, header.send_bytes_R);
  EXPECT_EQ(copy.receive_bytes_R, header.receive_bytes_R);
  EXPECT_EQ(to_string(copy), "all_to_all of 6 bytes (call 1099511627776, step 12)");
  const std::vector<int64_t> torn = {0, 0, 8, 0, 0, 0, 5};
  EXPECT_THROW((void)decode(torn), CommError);
}

TEST(CallHeader, MismatchIgnoresTheStepLabel) {
  CallHeader first;
  CallHeader second = first;
  second.step = 4;
  const std::vector<CallHeader> same = {first, second};
  EXPECT_EQ(find_mismatch(same), "");
  second.sequence = 1;
  const std::vector<CallHeader> other = {first, first, second};
  EXPECT_EQ(find_mismatch(other), "rank 0 calls barrier (call 0) where rank 2 calls barrier (call 1, step 4)");
}

TEST(Launch, SetsWhatOpenMpiNeeds) {
  EXPECT_THAT(mpirun_command(4, 2, {"switchyard", "train", "a b.toml"}),
              ElementsAre("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-x", "OMP_NUM_THREADS=2",
                          "-n", "4", "switchyard", "train", "a b.toml"));
  EXPECT_THAT(mpirun_command(1024, 0, {"x"}).at(6), HasSubstr("=1"));
  EXPECT_THROW((void)mpirun_command(0, 1, {"x"}), UsageError);
  EXPECT_THROW((void)mpirun_command(1025, 1, {"x"}), UsageError);
  EXPECT_THROW((void)mpirun_command(1, -1, {"x"}), UsageError);
  EXPECT_THROW((void)mpirun_command(1, 1025, {"x"}), UsageError);
  EXPECT_THROW((void)mpirun_command(1, 1, {}), UsageError);
}

}  // namespace
}  // namespace switchyard::test
