#include "switchyard/data/shard.hpp"

#include <gmock/gmock.h>
#include <rapidcheck.h>

#include <cstring>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

const std::vector<int32_t> kTokens{5, 6, 2, 2, 9, 2};
const std::vector<uint64_t> kOffsets{0, 3, 4, 6};

std::vector<int64_t> all_tokens(const TokenShard& shard) {
  std::vector<int64_t> tokens(static_cast<size_t>(shard.num_tokens()));
  shard.copy_tokens(0, std::span<int64_t>(tokens));
  return tokens;
}

TEST(Shard, LiesOnDiskAsDocumented) {
  const test::ScratchFolder scratch;
  write_shard(scratch.path() / "a", kTokens, kOffsets, 10);
  const std::string bytes = read_file(scratch.path() / "a");
  ASSERT_EQ(bytes.size(), 64U + 4 * 8 + 6 * 2);
  EXPECT_EQ(bytes.substr(0, 8), "SWYTOKEN");
  const auto word = [&](size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, 8);
    return value;
  };
  EXPECT_EQ(word(8), 1U | uint64_t{2} << 32);  // version 1, 2 bytes a token
  EXPECT_EQ(word(16), 10U);
  EXPECT_EQ(word(24), 3U);
  EXPECT_EQ(word(32), 6U);
  EXPECT_EQ(word(64 + 8), 3U);
  EXPECT_EQ(bytes[64 + 32 + 8], 9);
}

TEST(Shard, KnowsItsDocuments) {
  const test::ScratchFolder scratch;
  write_shard(scratch.path() / "a", kTokens, kOffsets, 10);
  const TokenShard shard(scratch.path() / "a");
  EXPECT_THAT(all_tokens(shard), ::testing::ElementsAre(5, 6, 2, 2, 9, 2));
  std::vector<int64_t> documents;
  for (int64_t token = 0; token < 6; ++token) documents.push_back(shard.document_of(token));
  EXPECT_THAT(documents, ::testing::ElementsAre(0, 0, 0, 1, 2, 2));
  EXPECT_EQ(shard.document_start(3), 6);
  std::vector<int32_t> part(2);
  shard.copy_tokens(4, std::span<int32_t>(part));
  EXPECT_THAT(part, ::testing::ElementsAre(9, 2));
}

TEST(Shard, WideTokensWhereTheVocabularyNeedsThem) {
  const test::ScratchFolder scratch;
  const std::vector<int32_t> tokens{0, 65535, 65536, 2};
  const std::vector<uint64_t> offsets{0, 4};
  write_shard(scratch.path() / "wide", tokens, offsets, 65537);
  EXPECT_EQ(TokenShard(scratch.path() / "wide").bytes_per_token(), 4);
  EXPECT_THAT(all_tokens(TokenShard(scratch.path() / "wide")), ::testing::ElementsAre(0, 65535, 65536, 2));
  write_shard(scratch.path() / "narrow", std::vector<int32_t>{65535}, std::vector<uint64_t>{0, 1}, 65536);
  EXPECT_EQ(TokenShard(scratch.path() / "narrow").bytes_per_token(), 2);
  EXPECT_THAT(all_tokens(TokenShard(scratch.path() / "narrow")), ::testing::ElementsAre(65535));
}

TEST(Shard, ReadsWhatWasWritten) {
  const test::ScratchFolder scratch;
  EXPECT_TRUE(rc::check("any documents", [&](const std::vector<std::vector<uint16_t>>& documents) {
    std::vector<int32_t> tokens;
    std::vector<uint64_t> offsets{0};
    for (const auto& document : documents) {
      tokens.insert(tokens.end(), document.begin(), document.end());
      offsets.push_back(tokens.size());
    }
    write_shard(scratch.path() / "a", tokens, offsets, 65536);
    const TokenShard shard(scratch.path() / "a");
    RC_ASSERT(shard.num_documents() == static_cast<int64_t>(documents.size()));
    for (size_t d = 0; d < documents.size(); ++d) {
      std::vector<int64_t> read(documents[d].size());
      shard.copy_tokens(shard.document_start(static_cast<int64_t>(d)), std::span<int64_t>(read));
      RC_ASSERT(std::equal(read.begin(), read.end(), documents[d].begin(), documents[d].end()));
    }
  }));
}

TEST(Shard, RefusesWhatDoesNotFit) {
  const test::ScratchFolder scratch;
  const auto path = scratch.path() / "a";
  EXPECT_THAT(error_of<ShapeError>([&] { write_shard(path, kTokens, kOffsets, 9); }),
              HasSubstr("token 4 is 9; expected [0, 9)"));
  EXPECT_THAT(error_of<ShapeError>([&] {
                write_shard(path, kTokens, std::vector<uint64_t>{0, 5}, 10);
              }),
              HasSubstr("end with"));
  EXPECT_THAT(error_of<ShapeError>([&] {
                write_shard(path, kTokens, std::vector<uint64_t>{0, 5, 3, 6}, 10);
              }),
              HasSubstr("fall"));
  EXPECT_FALSE(std::filesystem::exists(path));
  write_shard(path, kTokens, kOffsets, 10);
  const TokenShard shard(path);
  std::vector<int64_t> three(3);
  EXPECT_THROW(shard.copy_tokens(4, std::span<int64_t>(three)), ShapeError);
  EXPECT_THROW(shard.copy_tokens(-1, std::span<int64_t>(three)), ShapeError);
  EXPECT_THROW((void)shard.document_of(6), ShapeError);
  EXPECT_THROW((void)shard.document_start(4), ShapeError);
}

// Every byte of the file counts: flipping any bit, cutting anywhere or appending is noticed and the file is named.
TEST(Shard, EveryDamageIsNoticed) {
  const test::ScratchFolder scratch;
  const auto path = scratch.path() / "good";
  write_shard(path, kTokens, kOffsets, 10);
  const std::string good = read_file(path);
  const auto damaged = scratch.path() / "damaged.tokens";
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ 4);
    test::put_file(damaged, bytes);
    EXPECT_THAT(error_of<DataError>([&] { TokenShard shard(damaged); }), HasSubstr("damaged.tokens")) << "byte " << at;
    test::put_file(damaged, good.substr(0, at));
    EXPECT_THAT(error_of<DataError>([&] { TokenShard shard(damaged); }), HasSubstr("damaged.tokens")) << "cut at " << at;
  }
  test::put_file(damaged, good + '\0');
  EXPECT_THAT(error_of<DataError>([&] { TokenShard shard(damaged); }), HasSubstr("cut off or appended to"));
  EXPECT_THAT(error_of<DataError>([&] { TokenShard shard(scratch.path() / "none"); }), HasSubstr("No such file"));
}

TEST(Shard, StructureCheckLeavesTokensUnread) {
  const test::ScratchFolder scratch;
  const auto path = scratch.path() / "a";
  write_shard(path, kTokens, kOffsets, 10);
  std::string bytes = read_file(path);
  bytes.back() = 1;
  test::put_file(path, bytes);
  EXPECT_NO_THROW(TokenShard(path, ShardCheck::Structure));
  EXPECT_THROW(TokenShard(path, ShardCheck::Tokens), DataError);
}

}  // namespace
}  // namespace switchyard
