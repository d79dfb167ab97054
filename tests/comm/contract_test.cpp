// The contract over one member and over 1 to 4 threads.
#include "contract.hpp"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "switchyard/comm/threads.hpp"

namespace switchyard::test {
namespace {

using Parameters = std::tuple<int64_t, ContractCase>;

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  return std::string(std::get<1>(info.param).name) + "_on_" + std::to_string(std::get<0>(info.param));
}

class ThreadContract : public testing::TestWithParam<Parameters> {};

TEST_P(ThreadContract, holds) {
  const auto& [ranks, contract_case] = GetParam();
  EXPECT_NO_THROW(run_ranks(ranks, contract_case.run));
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadContract,
                         testing::Combine(testing::Range(int64_t{1}, int64_t{5}),
                                          testing::ValuesIn(contract_cases().begin(), contract_cases().end())),
                         name_of);

class SoloContract : public testing::TestWithParam<ContractCase> {};

TEST_P(SoloContract, holds) { EXPECT_NO_THROW(GetParam().run(*make_solo_communicator())); }

INSTANTIATE_TEST_SUITE_P(Solo, SoloContract, testing::ValuesIn(contract_cases().begin(), contract_cases().end()),
                         [](const auto& each) { return std::string(each.param.name); });

TEST(ThreadContract, TimeLimitNamesTheMissingRank) {
  for (const int64_t ranks : {2, 3, 4}) EXPECT_NO_THROW(run_ranks(ranks, check_time_limit));
}

}  // namespace
}  // namespace switchyard::test
