#include "switchyard/kernels/tile_product.hpp"

#include <ATen/Parallel.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "switchyard/kernels/layout_ops.hpp"
#include "switchyard/kernels/score_ops.hpp"
#include "switchyard/kernels/tile_outer.hpp"

namespace switchyard {
namespace {

using c10::BFloat16;

std::vector<BFloat16> counted(int64_t count) {
  std::vector<BFloat16> values;
  for (int64_t i = 0; i < count; ++i) values.emplace_back(static_cast<float>(i % 17 - 8));
  return values;
}

TEST(PairedMatrix, HoldsTwoRowsAtATime) {
  const std::vector<BFloat16> given = {1, 2, 3, 4, 5, 6};  // 3 rows of 2
  std::vector<BFloat16> pairs(12, BFloat16(9));            // 4 rows of 2, a column of which lies beyond
  layout_ops().pair_rows({given.data(), 3, 2, 2}, {pairs.data(), 4, 2, 3});
  EXPECT_EQ(pairs, (std::vector<BFloat16>{1, 3, 2, 4, 9, 9, 5, 0, 6, 0, 9, 9}));
}

TEST(PairedMatrix, TransposesAndFillsUpWithZeros) {
  const std::vector<BFloat16> given = {1, 2, 3, 4, 5, 6, 7, 8};  // 2 rows of 4
  std::vector<BFloat16> pairs(12, BFloat16(9));
  layout_ops().pair_rows_of_transposed({given.data(), 2, 4, 4}, {pairs.data(), 4, 3, 3});
  EXPECT_EQ(pairs, (std::vector<BFloat16>{1, 2, 5, 6, 0, 0, 3, 4, 7, 8, 0, 0}));
  std::vector<BFloat16> transposed(12, BFloat16(9));
  layout_ops().transpose({given.data(), 2, 4, 4}, {transposed.data(), 4, 3, 3});
  EXPECT_EQ(transposed, (std::vector<BFloat16>{1, 5, 0, 2, 6, 0, 3, 7, 0, 4, 8, 0}));
}

TEST(LayoutOps, TransposeAnyShape) {
  for (int64_t rows = 1; rows <= 20; ++rows) {
    for (int64_t columns = 2; columns <= 20; columns += 2) {
      std::vector<BFloat16> given;
      for (int64_t i = 0; i < rows * columns; ++i) given.push_back(BFloat16(static_cast<uint16_t>(i), BFloat16::from_bits()));
      const auto at = [&](int64_t row, int64_t column) { return given[static_cast<size_t>(row * columns + column)].x; };
      std::vector<BFloat16> transposed(static_cast<size_t>(columns * (rows + 2)), BFloat16(9)), pairs = transposed;
      layout_ops().transpose({given.data(), rows, columns, columns}, {transposed.data(), columns, rows + 1, rows + 2});
      layout_ops().pair_rows_of_transposed({given.data(), rows, columns, columns}, {pairs.data(), columns, rows + 1, rows + 2});
      for (int64_t column = 0; column < columns; ++column) {
        for (int64_t row = 0; row <= rows; ++row) {
          const uint16_t expected = row < rows ? at(row, column) : uint16_t{0};
          ASSERT_EQ(transposed[static_cast<size_t>(column * (rows + 2) + row)].x, expected) << rows << " " << columns;
          ASSERT_EQ(pairs[static_cast<size_t>((column / 2 * (rows + 2) + row) * 2 + column % 2)].x, expected) << rows << " " << columns;
        }
        EXPECT_EQ(transposed[static_cast<size_t>(column * (rows + 2) + rows + 1)], BFloat16(9));
      }
    }
  }
}

TEST(LayoutOps, PairRowsOfAnyLength) {
  for (int64_t columns = 1; columns <= 40; ++columns) {
    const std::vector<BFloat16> given = counted(3 * columns);
    std::vector<BFloat16> pairs(static_cast<size_t>(4 * (columns + 1)), BFloat16(9));
    layout_ops().pair_rows({given.data(), 3, columns, columns}, {pairs.data(), 4, columns, columns + 1});
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < columns; ++i) {
        const BFloat16 expected = row < 3 ? given[static_cast<size_t>(row * columns + i)] : BFloat16(0);
        ASSERT_EQ(pairs[static_cast<size_t>((row / 2 * (columns + 1) + i) * 2 + row % 2)], expected) << columns;
      }
    }
    EXPECT_EQ(pairs[static_cast<size_t>(2 * columns)], BFloat16(9));
  }
}

// These tests run three times: as the processor is, as without AMX, and as without bf16 products (tests/CMakeLists.txt).
TEST(TileProduct, IsThereWhereTheProcessorAndItsLimitAllowIt) {
  const char* given = std::getenv("ONEDNN_MAX_CPU_ISA");
  const std::string_view limit = given == nullptr ? "" : given;
  if (limit == "AVX512_CORE") {
    EXPECT_FALSE(has_tile_products());
  } else if (limit.empty() || limit == "AVX512_CORE_BF16") {
    const std::unordered_map<std::string, c10::IValue> has = at::cpu::get_cpu_capabilities();
    const auto bf16 = has.find("avx512_bf16");  // absent on other architectures
    EXPECT_EQ(has_tile_products(), bf16 != has.end() && bf16->second.toBool());
  }
}

// Small integers: every sum is exact.
TEST(TileProduct, EqualsTheSumsByHand) {
  if (!has_tile_products()) return;  // causal_attention takes another path there, and its tests with it
  for (const int64_t rows : {1, 5, 16, 33}) {
    for (const int64_t inner : {2, 6, 32, 70}) {
      for (const int64_t columns : {1, 7, 16, 65}) {
        const std::vector<BFloat16> left = counted(rows * inner), right = counted(inner * columns);
        std::vector<BFloat16> pairs(static_cast<size_t>(inner * (columns + 1)));
        layout_ops().pair_rows({right.data(), inner, columns, columns}, {pairs.data(), inner, columns, columns + 1});
        std::vector<float> out(static_cast<size_t>(rows * columns), 1.0F);
        const TileProducts products;
        tile_product({left.data(), rows, inner, inner}, {pairs.data(), inner, columns, columns + 1},
                     {out.data(), rows, columns, columns}, TileSum::Add);
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
}

// Two chunks of small integers, whose sums are exact; 300 columns are more than one thread's slab.
TEST(TileOuter, SumsChunksToTheSameBitsOnAnyNumberOfThreads) {
  if (!has_tile_products()) return;
  constexpr int64_t kRows = 33, kWidth = 70, kColumns = 300;
  const auto chunk = [](int64_t columns) {
    const std::vector<BFloat16> values = counted(kRows * columns);
    at::Tensor tensor = at::empty({kRows, columns}, at::kBFloat16);
    std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<BFloat16>());
    return tensor;
  };
  const at::Tensor rows = chunk(kWidth), values = chunk(kColumns);
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
  EXPECT_TRUE(scaled_transpose(together, 0.25).equal(expected.mul(0.25).t().to(at::kBFloat16)));
}

TEST(ScoreOps, ExponentialsOfAnyLength) {
  for (int64_t visible = 1; visible <= 128; ++visible) {
    const int64_t width = (visible + kScoreLanes - 1) / kScoreLanes * kScoreLanes;
    std::vector<float> scores(static_cast<size_t>(width), std::numeric_limits<float>::quiet_NaN());  // of the future: anything
    double sum = 0.0;
    for (int64_t i = 0; i < visible; ++i) {
      scores[static_cast<size_t>(i)] = static_cast<float>(4.0 * std::sin(static_cast<double>(3 * i)));
      sum += std::exp(static_cast<double>(scores[static_cast<size_t>(i)]));
    }
    std::vector<BFloat16> exps(static_cast<size_t>(width), BFloat16(9));
    const ExpSum result = score_ops().exponentials(scores.data(), exps.data(), visible, width);
    EXPECT_NEAR(result.log_sum, std::log(sum), 1e-6);
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(i);
      const double expected = i < visible ? std::exp(static_cast<double>(scores[at]) - std::log(sum)) : 0.0;
      EXPECT_NEAR(static_cast<double>(exps[at]) * static_cast<double>(result.inverse_sum), expected, 4e-3 * expected);
    }
  }
}

TEST(ScoreOps, GradientOfTwoRows) {
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
      for (size_t i = begin; i < end; ++i) mean += (probs[i] = std::exp(static_cast<double>(scores[i])) / sum) * static_cast<double>(d_probs[i]);
      for (size_t i = begin; i < end; ++i) expected[i] = probs[i] * (static_cast<double>(d_probs[i]) - mean);
      log_sums[row] = static_cast<float>(std::log(sum));
    }
    std::vector<BFloat16> d_scores(2 * kWidth, BFloat16(9)), probs_pairs = d_scores, d_scores_pairs = d_scores;
    score_ops().gradient({{scores.data(), d_probs.data(), log_sums[0], 64, d_scores.data()},
                          {scores.data() + kWidth, d_probs.data() + kWidth, log_sums[1], visible, d_scores.data() + kWidth},
                          probs_pairs.data(),
                          d_scores_pairs.data()},
                         kWidth);
    for (size_t i = 0; i < 2 * kWidth; ++i) {
      const size_t paired = i % kWidth * 2 + i / kWidth;
      EXPECT_NEAR(static_cast<double>(probs_pairs[paired]), probs[i], 4e-3 * probs[i]);
      EXPECT_NEAR(static_cast<double>(d_scores[i]), expected[i], 4e-3 * std::abs(expected[i]) + 1e-7);
      EXPECT_EQ(d_scores_pairs[paired].x, d_scores[i].x);
    }
  }
}

TEST(ScoreOps, NanAndInfinityStayVisible) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> scores(64, 0.5F);
    scores[18] = bad;
    std::vector<BFloat16> exps(64);
    EXPECT_TRUE(std::isnan(score_ops().exponentials(scores.data(), exps.data(), 64, 64).inverse_sum)) << bad;
  }
}

// 2^-24 per unit of precision: the polynomial and the reduction together stay within a few of them.
TEST(ScoreOps, TheExponentialIsExactToFp32) {
  for (double x = 0.0; x > -80.0; x -= 0.0137) {
    std::vector<float> scores(64, static_cast<float>(x));
    scores[0] = 0.0F;
    std::vector<BFloat16> exps(64);
    const ExpSum sum = score_ops().exponentials(scores.data(), exps.data(), 64, 64);
    const double expected = 1.0 + 63.0 * std::exp(static_cast<double>(scores[1]));
    EXPECT_NEAR(1.0 / static_cast<double>(sum.inverse_sum), expected, 4e-7 * expected) << x;
  }
}

}  // namespace
}  // namespace switchyard
