#include "switchyard/report/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "synthetic_study.hpp"

namespace switchyard {
namespace {

TEST(BuildReport, SameRunsSameBytes) {
  EXPECT_EQ(build_report(testing::synthetic_demo(), {}), build_report(testing::synthetic_demo(), {}));
}

}  // namespace
}  // namespace switchyard
