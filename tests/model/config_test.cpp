#include "switchyard/model/config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/model/compute_type.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

template <typename Change>
void expect_refused(const Change& change, const std::string& key) {
  ModelConfig config;
  change(config);
  EXPECT_THAT([&] { config.validate("run.toml:3: model"); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("run.toml:3: model"), HasSubstr(key))));
  EXPECT_THROW((void)Decoder(config, ComputeType::Float32, 1, 1), ConfigError);
}

TEST(ModelConfig, RefusesWhatCannotBeBuilt) {
  EXPECT_NO_THROW(ModelConfig{}.validate("here"));
  expect_refused([](ModelConfig& c) { c.head_width = 33; }, "head_width is 33; expected an even number");
  expect_refused([](ModelConfig& c) { c.num_chosen = 17; }, "num_chosen is 17; expected at most num_experts = 16");
  expect_refused([](ModelConfig& c) { c.num_chosen = 0; }, "num_chosen");
  expect_refused([](ModelConfig& c) { c.num_kv_heads = 3; }, "num_heads is 4; expected a multiple of num_kv_heads = 3");
  expect_refused([](ModelConfig& c) { c.num_kv_heads = 0; }, "num_kv_heads");
  expect_refused([](ModelConfig& c) { c.vocab_size = 0; }, "vocab_size");
  expect_refused([](ModelConfig& c) { c.num_layers = 0; }, "num_layers");
  expect_refused([](ModelConfig& c) { c.width = -1; }, "width");
  expect_refused([](ModelConfig& c) { c.expert_width = 0; }, "expert_width");
  expect_refused([](ModelConfig& c) { c.shared_expert_width = -1; }, "shared_expert_width");
  expect_refused([](ModelConfig& c) { c.dense_layers = {4}; }, "dense_layers");
  expect_refused([](ModelConfig& c) { c.dense_layers = {1, 1}; }, "more than once");
  expect_refused([](ModelConfig& c) { c.dense_layers = {1}; c.dense_width = 0; }, "dense_width");
  expect_refused([](ModelConfig& c) { c.rope_theta = 0.0; }, "rope_theta");
  expect_refused([](ModelConfig& c) { c.norm_epsilon = 0.0; }, "norm_epsilon");
  expect_refused([](ModelConfig& c) { c.norm_epsilon = 1e-46; }, "norm_epsilon");  // 0 in fp32
  expect_refused([](ModelConfig& c) { c.init_deviation = -0.1; }, "init_deviation");
}

TEST(ModelConfig, KeepsItsValuesThroughToml) {
  ModelConfig config;
  config.width = 96;
  config.dense_layers = {0, 2};
  config.router.normalize = WeightNormalization::None;
  ModelConfig read;
  read_config(parse_config_text(to_toml(config), "text"), read);
  EXPECT_EQ(read, config);
}

TEST(ModelConfig, EnumsReadBackAndNameTheNearest) {
  for (const ComputeType type : {ComputeType::Auto, ComputeType::Float32, ComputeType::BFloat16, ComputeType::Float64}) {
    ComputeType read = ComputeType::Auto;
    parse(to_string(type), read);
    EXPECT_EQ(read, type);
  }
  for (const Recompute mode : {Recompute::None, Recompute::Layers}) {
    Recompute read = Recompute::None;
    parse(to_string(mode), read);
    EXPECT_EQ(read, mode);
  }
  ComputeType type = ComputeType::Auto;
  EXPECT_THAT([&] { parse("bfloat", type); }, ThrowsMessage<ConfigError>(HasSubstr("bfloat16")));
}

TEST(ComputeType, AutoIsResolvedAndOthersAreKept) {
  EXPECT_NE(resolve_compute_type(ComputeType::Auto), ComputeType::Auto);
  EXPECT_EQ(resolve_compute_type(ComputeType::Float64), ComputeType::Float64);
}

// Runs once for each of SWITCHYARD_TEST_ISAS (tests/CMakeLists.txt): a processor with bf16 products is of no use where they may not
// be had.
TEST(ComputeType, AutoIsSinglePrecisionWhereProductsOfBFloat16AreForbidden) {
  const char* limit = std::getenv("ONEDNN_MAX_CPU_ISA");
  if (limit == nullptr || std::string_view(limit) != "AVX2") return;  // another of the runs
  EXPECT_EQ(resolve_compute_type(ComputeType::Auto), ComputeType::Float32);
}

TEST(ComputeType, IsTheFasterOneOfTheProcessor) {
  const auto faster = [](bool amx, bool avx512, bool intel) { return faster_compute_type({amx, avx512, intel}); };
  EXPECT_EQ(faster(/*amx=*/true, /*avx512=*/true, /*intel=*/true), ComputeType::BFloat16);
  EXPECT_EQ(faster(/*amx=*/false, /*avx512=*/true, /*intel=*/true), ComputeType::Float32);
  EXPECT_EQ(faster(/*amx=*/false, /*avx512=*/true, /*intel=*/false), ComputeType::BFloat16);
  EXPECT_EQ(faster(/*amx=*/false, /*avx512=*/false, /*intel=*/false), ComputeType::Float32);
}

}  // namespace
}  // namespace switchyard
