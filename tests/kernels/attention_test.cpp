#include "switchyard/kernels/attention.hpp"

#include <ATen/Parallel.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "kernels/check.hpp"
#include "kernels/instruction_sets.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/kernels/block_attention.hpp"
#include "switchyard/kernels/tile_attention.hpp"
#include "switchyard/kernels/tile_product.hpp"

namespace switchyard {
namespace {

using testing::expect_close_in;
using testing::expect_same_function;
using testing::max_difference;
using testing::random_tensor;

SWITCHYARD_ON_EACH_INSTRUCTION_SET(CausalAttention);

TEST_P(CausalAttention, MatchesHandWorkedWeights) {
  // One head of width 1. Position 1 scores ln 3 for itself against 0 for position 0: weights 1/4 and 3/4.
  AttentionHeads heads;
  heads.query_BJSIW = at::tensor({5.0, 1.0}, at::kDouble).reshape({1, 1, 2, 1, 1});
  heads.key_BJSW = at::tensor({0.0, std::log(3.0)}, at::kDouble).reshape({1, 1, 2, 1});
  heads.value_BJSW = at::tensor({8.0, 4.0}, at::kDouble).reshape({1, 1, 2, 1});
  EXPECT_LE(max_difference(causal_attention(heads), at::tensor({8.0, 5.0}, at::kDouble).reshape({2, 1})), 1e-12);
}

struct Sizes {
  int64_t batch, kv_heads, positions, group, width;
};

std::vector<at::Tensor> random_heads(const Sizes& s, at::ScalarType type = at::kDouble) {
  return {random_tensor({s.batch, s.kv_heads, s.positions, s.group, s.width}, 1, type),
          random_tensor({s.batch, s.kv_heads, s.positions, s.width}, 2, type),
          random_tensor({s.batch, s.kv_heads, s.positions, s.width}, 3, type)};
}

TEST_P(CausalAttention, EqualsItsReferenceInValueAndGradient) {
  // 130 and 300 positions cross the block borders, 300 unevenly.
  for (const Sizes& s : {Sizes{1, 1, 1, 1, 2}, {2, 3, 7, 2, 4}, {1, 2, 130, 1, 6}, {2, 1, 300, 3, 4}}) {
    expect_same_function([](const auto& in) { return causal_attention({in[0], in[1], in[2]}); },
                         [](const auto& in) { return causal_attention_reference({in[0], in[1], in[2]}); },
                         random_heads(s), 1e-10);
  }
}

// 64 and 65 positions end on and behind a tile's border, 2,000 take fewer rows to a block, groups of 3 heads make odd blocks, 70
// heads more rows than one has.
constexpr std::array<Sizes, 8> kTileSizes = {{{1, 1, 1, 1, 2}, {2, 3, 7, 2, 4}, {1, 2, 64, 1, 16}, {2, 1, 65, 1, 32},
                                              {2, 2, 300, 3, 64}, {1, 1, 2000, 2, 8}, {1, 1, 9, 70, 6}, {1, 2, 33, 1, 5}}};

// By tiles where the processor has them, by blocks everywhere.
void expect_close_attention(at::ScalarType type, double by_tiles, double by_blocks) {
  for (const Sizes& s : kTileSizes) {
    SCOPED_TRACE(::testing::Message() << type << ", " << s.positions << " positions, group " << s.group << ", width " << s.width);
    std::vector<at::Tensor> heads = random_heads(s);
    heads[0].div_(std::sqrt(static_cast<double>(s.width)));
    const auto reference = [](const auto& in) { return causal_attention_reference({in[0], in[1], in[2]}); };
    const double tolerance = has_tile_attention({heads[0].to(type), heads[1], heads[2]}) ? by_tiles : by_blocks;
    expect_close_in(type, [](const auto& in) { return causal_attention({in[0], in[1], in[2]}); }, reference, heads, tolerance);
    expect_close_in(type, [](const auto& in) { return block_attention({in[0], in[1], in[2]}); }, reference, heads, by_blocks);
  }
}

// Blocks round their scores.
TEST_P(CausalAttention, IsCloseInBfloat16) { expect_close_attention(at::kBFloat16, 0.01, 0.02); }
TEST_P(CausalAttention, IsCloseInFloat32) { expect_close_attention(at::kFloat, 2e-6, 2e-6); }

// Odd widths cannot be paired; fp32 need not be.
TEST_P(CausalAttention, GoesByTilesWhereTheyAre) {
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    for (const int64_t width : {4, 5}) {
      const std::vector<at::Tensor> in = random_heads({1, 1, 3, 1, width}, type);
      const bool expected = has_tile_products(type) && (type == at::kFloat || width == 4);
      EXPECT_EQ(has_tile_attention({in[0], in[1], in[2]}), expected) << type << " " << width;
    }
  }
}

TEST_P(CausalAttention, TilesGiveTheSameBitsOnAnyNumberOfThreads) {
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    const std::vector<at::Tensor> in = random_heads({2, 2, 130, 2, 32}, type);
    if (!has_tile_attention({in[0], in[1], in[2]})) continue;  // ATen's products are not asked for equal bits
    const int threads = at::get_num_threads();
    at::set_num_threads(3);
    const at::Tensor together = causal_attention({in[0], in[1], in[2]});
    at::set_num_threads(1);
    const at::Tensor alone = causal_attention({in[0], in[1], in[2]});
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(together, alone)) << type;
  }
}

TEST_P(CausalAttention, NanStaysVisible) {
  for (const at::ScalarType type : {at::kBFloat16, at::kFloat}) {
    const std::vector<at::Tensor> in = random_heads({1, 1, 70, 1, 8}, type);
    in[1].select(2, 40).fill_(std::numeric_limits<float>::quiet_NaN());
    const at::Tensor out = causal_attention({in[0], in[1], in[2]});
    EXPECT_FALSE(out.narrow(0, 0, 40).isnan().any().item<bool>()) << type;
    EXPECT_TRUE(out.narrow(0, 40, 30).isnan().all().item<bool>()) << type;
  }
}

TEST_P(CausalAttention, DoesNotSeeTheFuture) {
  const std::vector<at::Tensor> in = random_heads({1, 1, 140, 2, 4});
  const at::Tensor before = causal_attention({in[0], in[1], in[2]});
  in[1].narrow(2, 137, 3).add_(1.0);
  in[2].narrow(2, 137, 3).add_(1.0);
  const at::Tensor after = causal_attention({in[0], in[1], in[2]});
  EXPECT_EQ(max_difference(before.narrow(0, 0, 137), after.narrow(0, 0, 137)), 0.0);
  EXPECT_GT(max_difference(before.narrow(0, 137, 3), after.narrow(0, 137, 3)), 1e-3);
}

TEST_P(CausalAttention, RowsDoNotSeeEachOther) {
  const std::vector<at::Tensor> in = random_heads({3, 2, 9, 2, 4});
  const at::Tensor joined = causal_attention({in[0], in[1], in[2]});
  const at::Tensor alone = causal_attention({in[0].narrow(0, 1, 1), in[1].narrow(0, 1, 1), in[2].narrow(0, 1, 1)});
  EXPECT_LE(max_difference(joined.narrow(0, 9, 9), alone), 1e-14);
}

TEST_P(CausalAttention, RejectsHeadsThatDoNotFit) {
  std::vector<at::Tensor> in = random_heads({1, 2, 5, 2, 4});
  EXPECT_THROW((void)causal_attention({in[0], in[1].narrow(2, 0, 4), in[2]}), ShapeError);
  EXPECT_THROW((void)causal_attention({in[0], in[1], in[2].narrow(1, 0, 1)}), ShapeError);
  for (const Sizes& nothing : {Sizes{1, 2, 5, 0, 4}, Sizes{1, 2, 5, 2, 0}}) {
    in = random_heads(nothing);
    EXPECT_THROW((void)causal_attention({in[0], in[1], in[2]}), ShapeError);
  }
}

}  // namespace
}  // namespace switchyard
