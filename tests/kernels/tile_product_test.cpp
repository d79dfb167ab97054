#include "switchyard/kernels/tile_product.hpp"

#include <ATen/Parallel.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "kernels/instruction_sets.hpp"
#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/rounded_up.hpp"
#include "switchyard/kernels/score_ops.hpp"
#include "switchyard/kernels/tile_outer.hpp"

namespace switchyard {
namespace {

using c10::BFloat16;
using testing::on_each_instruction_set;

template <typename Value>
class Tiles : public ::testing::Test {};
using TileTypes = ::testing::Types<BFloat16, float>;
TYPED_TEST_SUITE(Tiles, TileTypes);

template <typename Value>
constexpr at::ScalarType kType = c10::CppTypeToScalarType<Value>::value;

template <typename Value>
std::vector<Value> counted(int64_t count) {
  std::vector<Value> values;
  for (int64_t i = 0; i < count; ++i) values.emplace_back(static_cast<float>(i % 17 - 8));
  return values;
}

// Where a right-hand matrix keeps a number: bf16 has pairs of rows.
template <typename Value>
size_t right_place(int64_t row, int64_t column, int64_t leading) {
  const bool pairs = std::is_same_v<Value, BFloat16>;
  return static_cast<size_t>(pairs ? (row / 2 * leading + column) * 2 + row % 2 : row * leading + column);
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(LayoutLoops);

TEST_P(LayoutLoops, PairTwoRowsAtATime) {
  const std::vector<BFloat16> given = {1, 2, 3, 4, 5, 6};  // 3 rows of 2
  std::vector<BFloat16> pairs(12, BFloat16(9));            // 4 rows of 2, a column of which lies beyond
  layout_ops<BFloat16>().as_right({given.data(), 3, 2, 2}, {pairs.data(), 4, 2, 3});
  EXPECT_EQ(pairs, (std::vector<BFloat16>{1, 3, 2, 4, 9, 9, 5, 0, 6, 0, 9, 9}));
}

TEST_P(LayoutLoops, TransposeAndFillUpWithZeros) {
  const std::vector<BFloat16> given = {1, 2, 3, 4, 5, 6, 7, 8};  // 2 rows of 4
  std::vector<BFloat16> pairs(12, BFloat16(9));
  layout_ops<BFloat16>().transpose_as_right({given.data(), 2, 4, 4}, {pairs.data(), 4, 3, 3});
  EXPECT_EQ(pairs, (std::vector<BFloat16>{1, 2, 5, 6, 0, 0, 3, 4, 7, 8, 0, 0}));
  std::vector<BFloat16> transposed(12, BFloat16(9));
  layout_ops<BFloat16>().transpose({given.data(), 2, 4, 4}, {transposed.data(), 4, 3, 3});
  EXPECT_EQ(transposed, (std::vector<BFloat16>{1, 5, 0, 2, 6, 0, 3, 7, 0, 4, 8, 0}));
}

TYPED_TEST(Tiles, TransposeAnyShape) {
  on_each_instruction_set([] {
    using Value = TypeParam;
    constexpr int64_t kStep = std::is_same_v<Value, BFloat16> ? 2 : 1;  // columns that are paired
    for (int64_t rows = 1; rows <= 20; ++rows) {
      for (int64_t columns = kStep; columns <= 20; columns += kStep) {
        const std::vector<Value> given = counted<Value>(rows * columns);
        std::vector<Value> transposed(static_cast<size_t>(columns * (rows + 2)), Value(9)), right = transposed;
        layout_ops<Value>().transpose({given.data(), rows, columns, columns}, {transposed.data(), columns, rows + 1, rows + 2});
        layout_ops<Value>().transpose_as_right({given.data(), rows, columns, columns}, {right.data(), columns, rows + 1, rows + 2});
        for (int64_t column = 0; column < columns; ++column) {
          for (int64_t row = 0; row <= rows; ++row) {
            const Value expected = row < rows ? given[static_cast<size_t>(row * columns + column)] : Value(0);
            ASSERT_EQ(transposed[static_cast<size_t>(column * (rows + 2) + row)], expected) << rows << " " << columns;
            ASSERT_EQ(right[right_place<Value>(column, row, rows + 2)], expected) << rows << " " << columns;
          }
          EXPECT_EQ(transposed[static_cast<size_t>(column * (rows + 2) + rows + 1)], Value(9));
        }
      }
    }
  });
}

TYPED_TEST(Tiles, LayOutRowsOfAnyLength) {
  on_each_instruction_set([] {
    using Value = TypeParam;
    for (int64_t columns = 1; columns <= 40; ++columns) {
      const std::vector<Value> given = counted<Value>(3 * columns);
      std::vector<Value> right(static_cast<size_t>(4 * (columns + 1)), Value(9));
      layout_ops<Value>().as_right({given.data(), 3, columns, columns}, {right.data(), 4, columns, columns + 1});
      for (int64_t row = 0; row < 4; ++row) {
        for (int64_t i = 0; i < columns; ++i) {
          const Value expected = row < 3 ? given[static_cast<size_t>(row * columns + i)] : Value(0);
          ASSERT_EQ(right[right_place<Value>(row, i, columns + 1)], expected) << columns;
        }
        EXPECT_EQ(right[right_place<Value>(row, columns, columns + 1)], Value(9));
      }
    }
  });
}

// These tests run as the processor is and once for each of SWITCHYARD_TEST_ISAS (tests/CMakeLists.txt).
TEST(TileProduct, IsThereWhereTheProcessorAndItsLimitAllowIt) {
  const char* given = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string_view limit = given == nullptr ? "" : given;
  const std::unordered_map<std::string, c10::IValue> processor = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = processor.find(name);  // absent on other architectures
    return found != processor.end() && found->second.toBool();
  };
  const bool pairs = limit.empty() || limit == "AVX512_CORE_BF16";
  EXPECT_EQ(has_tile_products(at::kBFloat16), pairs && has("avx512_bf16"));
  EXPECT_EQ(has_tile_products(at::kFloat), has("avx2"));
  EXPECT_FALSE(has_tile_products(at::kDouble));
}

// Small integers: every sum is exact.
TYPED_TEST(Tiles, EqualTheSumsByHand) {
  on_each_instruction_set([] {
    using Value = TypeParam;
    if (!has_tile_products(kType<Value>)) return;  // the operations take another path there, and their tests with them
    for (const int64_t rows : {1, 5, 16, 33}) {
      for (const int64_t inner : {2, 6, 32, 70}) {
        for (const int64_t columns : {1, 7, 16, 65}) {
          const std::vector<Value> left = counted<Value>(rows * inner), right = counted<Value>(inner * columns);
          std::vector<Value> laid_out(static_cast<size_t>(inner * (columns + 1)));
          layout_ops<Value>().as_right({right.data(), inner, columns, columns}, {laid_out.data(), inner, columns, columns + 1});
          std::vector<float> out(static_cast<size_t>(rows * columns), 1.0F);
          const TileProducts products;
          tile_product(MatrixView<const Value>{left.data(), rows, inner, inner},
                       RightMatrix<const Value>{laid_out.data(), inner, columns, columns + 1}, {out.data(), rows, columns, columns},
                       TileSum::Add);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t c = 0; c < columns; ++c) {
              float sum = 1.0F;
              for (int64_t i = 0; i < inner; ++i) {
                sum += static_cast<float>(left[static_cast<size_t>(r * inner + i)]) *
                       static_cast<float>(right[static_cast<size_t>(i * columns + c)]);
              }
              ASSERT_EQ(out[static_cast<size_t>(r * columns + c)], sum) << rows << " " << inner << " " << columns;
            }
          }
        }
      }
    }
  });
}

// Two chunks of small integers, whose sums are exact; 300 columns are more than one thread's slab.
TYPED_TEST(Tiles, OuterProductsSumToTheSameBitsOnAnyNumberOfThreads) {
  on_each_instruction_set([] {
    using Value = TypeParam;
    if (!has_tile_products(kType<Value>)) return;
    constexpr int64_t kRows = 33, kWidth = 70, kColumns = 300;
    const auto chunk = [](int64_t columns) {
      const std::vector<Value> values = counted<Value>(kRows * columns);
      at::Tensor tensor = at::empty({kRows, columns}, kType<Value>);
      std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<Value>());
      return tensor;
    };
    const at::Tensor rows = chunk(kWidth), values = chunk(kColumns);
    EXPECT_TRUE(has_tile_outer(rows));
    const auto sum_twice = [&] {
      const at::Tensor sum = make_outer_sum(kWidth, kColumns);
      add_tile_outer(sum, rows, values, TileSum::Overwrite);
      add_tile_outer(sum, rows, values, TileSum::Add);
      return sum;
    };
    const at::Tensor expected = at::mm(rows.to(at::kDouble).t(), values.to(at::kDouble)).mul(2.0);
    const int threads = at::get_num_threads();
    at::set_num_threads(3);
    const at::Tensor together = sum_twice();
    at::set_num_threads(1);
    const at::Tensor alone = sum_twice();
    at::set_num_threads(threads);
    EXPECT_TRUE(together.to(at::kDouble).equal(expected));
    EXPECT_TRUE(alone.equal(together));
    const at::Tensor scaled = scaled_transpose(together, 0.25, kType<Value>);
    EXPECT_TRUE(scaled.equal(expected.mul(0.25).t().to(kType<Value>)));
  });
}

TYPED_TEST(Tiles, ExponentialsOfAnyLength) {
  on_each_instruction_set([] {
    using Value = TypeParam;
    constexpr double kTolerance = std::is_same_v<Value, float> ? 1e-6 : 4e-3;
    for (int64_t visible = 1; visible <= 128; ++visible) {
      const int64_t width = rounded_up(visible, kScoreLanes);
      std::vector<float> scores(static_cast<size_t>(width), std::numeric_limits<float>::quiet_NaN());  // of the future: anything
      double sum = 0.0;
      for (int64_t i = 0; i < visible; ++i) {
        scores[static_cast<size_t>(i)] = static_cast<float>(4.0 * std::sin(static_cast<double>(3 * i)));
        sum += std::exp(static_cast<double>(scores[static_cast<size_t>(i)]));
      }
      std::vector<Value> exps(static_cast<size_t>(width), Value(9));
      const ExpSum result = score_ops<Value>().exponentials(scores.data(), exps.data(), visible, width);
      EXPECT_NEAR(result.log_sum, std::log(sum), 1e-6);
      for (int64_t i = 0; i < width; ++i) {
        const auto at = static_cast<size_t>(i);
        const double expected = i < visible ? std::exp(static_cast<double>(scores[at]) - std::log(sum)) : 0.0;
        EXPECT_NEAR(static_cast<double>(exps[at]) * static_cast<double>(result.inverse_sum), expected, kTolerance * expected);
      }
    }
  });
}

SWITCHYARD_ON_EACH_INSTRUCTION_SET(ScoreLoops);

TEST_P(ScoreLoops, GradientOfTwoRows) {
  constexpr int64_t kWidth = 64;
  for (const int64_t visible : {0, 1, 20, 63}) {  // of the lower row; 0: it is not there
    std::vector<float> scores(2 * kWidth), d_probs(2 * kWidth, std::numeric_limits<float>::quiet_NaN());
    std::vector<double> expected(2 * kWidth, 0.0), probs(2 * kWidth, 0.0);
    std::vector<float> log_sums(2, 0.0F);
    const std::vector<int64_t> sees = {64, visible};
    for (size_t row = 0; row < 2; ++row) {
      double sum = 0.0, mean = 0.0;
      const size_t begin = row * kWidth, end = begin + static_cast<size_t>(sees[row]);
      for (size_t i = begin; i < end; ++i) {
        scores[i] = std::sin(static_cast<float>(i));
        d_probs[i] = std::cos(static_cast<float>(7 * i));
        sum += std::exp(static_cast<double>(scores[i]));
      }
      for (size_t i = begin; i < end; ++i) {
        mean += (probs[i] = std::exp(static_cast<double>(scores[i])) / sum) * static_cast<double>(d_probs[i]);
      }
      for (size_t i = begin; i < end; ++i) expected[i] = probs[i] * (static_cast<double>(d_probs[i]) - mean);
      log_sums[row] = static_cast<float>(std::log(sum));
    }
    std::vector<float> wide_scores = scores, wide_d_probs = d_probs;
    const auto rows_of = [&](std::vector<float>& from, std::vector<float>& d_from) {
      return std::array<ScoreRow, 2>{{{from.data(), d_from.data(), log_sums[0], 64},
                                      {from.data() + kWidth, d_from.data() + kWidth, log_sums[1], visible}}};
    };
    std::vector<BFloat16> d_scores(2 * kWidth, BFloat16(9)), probs_pairs = d_scores, d_scores_pairs = d_scores;
    const auto [upper, lower] = rows_of(scores, d_probs);
    score_ops<BFloat16>().gradient(
        {upper, lower, d_scores.data(), d_scores.data() + kWidth, probs_pairs.data(), d_scores_pairs.data()}, kWidth);
    const auto [wide_upper, wide_lower] = rows_of(wide_scores, wide_d_probs);
    score_ops<float>().gradient({wide_upper, wide_lower}, kWidth);
    for (size_t i = 0; i < 2 * kWidth; ++i) {
      const size_t paired = i % kWidth * 2 + i / kWidth;
      EXPECT_NEAR(static_cast<double>(probs_pairs[paired]), probs[i], 4e-3 * probs[i]);
      EXPECT_NEAR(static_cast<double>(d_scores[i]), expected[i], 4e-3 * std::abs(expected[i]) + 1e-7);
      EXPECT_EQ(d_scores_pairs[paired].x, d_scores[i].x);
      EXPECT_NEAR(static_cast<double>(wide_scores[i]), probs[i], 1e-6 * probs[i]);
      EXPECT_NEAR(static_cast<double>(wide_d_probs[i]), expected[i], 1e-7);
    }
  }
}

TEST_P(ScoreLoops, NanAndInfinityStayVisible) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> scores(64, 0.5F);
    scores[18] = bad;
    std::vector<BFloat16> exps(64);
    EXPECT_TRUE(std::isnan(score_ops<BFloat16>().exponentials(scores.data(), exps.data(), 64, 64).inverse_sum)) << bad;
  }
}

// The polynomial is within 7.5e-8 of the truth; log2(e), rounded to fp32, adds an error that grows with the argument. So does the
// argument's product with it where that is rounded before something is added.
TEST_P(ScoreLoops, TheExponentialIsExactToFp32) {
  const bool fused = (GetParam() & (HWY_SSE4 | HWY_SSSE3 | HWY_EMU128 | HWY_SCALAR)) == 0;
  const double error = fused ? 2e-7 : 3e-7, growth = fused ? 1.5e-8 : 7.5e-8;
  for (double x = 0.0; x > -80.0; x -= 0.0137) {
    std::vector<float> scores(64, static_cast<float>(x));
    scores[0] = 0.0F;
    std::vector<float> exps(64);
    const ExpSum sum = score_ops<float>().exponentials(scores.data(), exps.data(), 64, 64);
    const double expected = std::exp(static_cast<double>(scores[1]));
    for (const size_t i : {1, 17, 63}) EXPECT_NEAR(exps[i], expected, (error - growth * x) * expected) << x;
    EXPECT_FLOAT_EQ(exps[0], 1.0F) << x;
    // Lanes add up in fp32, whose half unit is 2^-24: of 64 numbers 16 in each with four lanes, all in one without vectors.
    const double sum_error = (GetParam() == HWY_SCALAR ? 64.0 : 16.0) * 0x1p-24 + error;
    EXPECT_NEAR(1.0 / static_cast<double>(sum.inverse_sum), 1.0 + 63.0 * expected, sum_error * (1.0 + 63.0 * expected)) << x;
  }
}

}  // namespace
}  // namespace switchyard
