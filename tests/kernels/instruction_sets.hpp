#pragma once
// Tests of the row loops, which are compiled once for each instruction set (Highway): run with all that this processor has, not
// only with the best one.

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <string>

namespace switchyard::testing {

/// The row loops run with one instruction set while this lives, with the best one afterwards.
class OneInstructionSet {
 public:
  explicit OneInstructionSet(int64_t set) { choose(set); }
  ~OneInstructionSet() { choose(0); }
  OneInstructionSet(const OneInstructionSet&) = delete;
  OneInstructionSet& operator=(const OneInstructionSet&) = delete;

 private:
  static void choose(int64_t set) {
    hwy::SetSupportedTargetsForTest(set);  // 0: what the processor has
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

/// body() with each of them.
template <typename Body>
void on_each_instruction_set(const Body& body) {
  for (const int64_t set : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(set));
    const OneInstructionSet only(set);
    body();
  }
}

/// A suite of TEST_P, each of which runs with each of them.
class OnEachInstructionSet : public ::testing::TestWithParam<int64_t> {
  const OneInstructionSet only_{GetParam()};
};

}  // namespace switchyard::testing

/// Makes `suite` one, in the namespace where it stands.
#define SWITCHYARD_ON_EACH_INSTRUCTION_SET(suite)                                                                     \
  class suite : public ::switchyard::testing::OnEachInstructionSet {};                                                \
  INSTANTIATE_TEST_SUITE_P(InstructionSets, suite, ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),          \
                           [](const auto& test) { return std::string(hwy::TargetName(test.param)); })
