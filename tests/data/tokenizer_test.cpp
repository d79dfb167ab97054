#include "switchyard/data/tokenizer.hpp"

#include <gmock/gmock.h>
#include <rapidcheck.h>

#include <nlohmann/json.hpp>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/data/unicode.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;

// Words of a few syllables, so that there is something to merge.
std::string made_up_text(std::string_view stream, int words) {
  const std::vector<std::string> syllables{
      "ka", "to", "mir", "\u00e9l", "\u0416\u0438", "\u3042", "== ", "  ", "\n", "\n    ", "\t", "xy", "0"};
  Rng rng(7, stream);
  std::string text;
  for (int word = 0; word < words; ++word) {
    for (uint64_t i = rng.below(4) + 1; i > 0; --i)
      text += syllables[std::min(rng.below(syllables.size()), rng.below(syllables.size()))];
    text += ' ';
  }
  return text;
}

TokenizerOptions small_options() {
  TokenizerOptions options;
  options.vocab_size = 420;
  return options;
}

std::string train_small(const TokenizerOptions& options) {
  const std::string first = made_up_text("first", 6000);
  const std::string second = made_up_text("second", 6000);
  const std::vector<std::vector<std::string_view>> domains{{first}, {second}};
  return train_tokenizer(domains, options);
}

class TokenizerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() { model_ = new std::string(train_small(small_options())); }
  static void TearDownTestSuite() { delete model_; }
  TokenizerTest() : tokenizer_(Tokenizer::from_bytes(*model_, "made-up")) {}

  [[nodiscard]] std::string around(std::string_view text) const { return tokenizer_.decode(tokenizer_.encode(text)); }

  static inline std::string* model_ = nullptr;
  Tokenizer tokenizer_;
};

TEST_F(TokenizerTest, SpecialPiecesHaveTheDocumentedIds) {
  EXPECT_EQ(tokenizer_.vocab_size(), 420);
  EXPECT_EQ(tokenizer_.piece(0), "<unk>");
  EXPECT_EQ(tokenizer_.piece(kBeginPiece), "<s>");
  EXPECT_EQ(tokenizer_.piece(kEndPiece), "</s>");
  EXPECT_EQ(tokenizer_.piece(kNewlinePiece), "\n");
  EXPECT_EQ(tokenizer_.piece(kFirstBytePiece), "<0x00>");
  EXPECT_EQ(tokenizer_.piece(kFirstBytePiece + 255), "<0xFF>");
  EXPECT_THAT(tokenizer_.encode("\n\n"), ElementsAre(3, 3));
  EXPECT_THAT(tokenizer_.encode("\t"), ElementsAre(kFirstBytePiece + 9));
  EXPECT_THAT(tokenizer_.encode(""), ElementsAre());
}

TEST_F(TokenizerTest, LearnsPieces) {
  const std::string text = made_up_text("third", 1000);
  EXPECT_LT(tokenizer_.encode(text).size() * 2, text.size());
}

TEST_F(TokenizerTest, NastyTextComesBack) {
  const std::vector<std::string> nasty{" ",
                                       "   ",
                                       " a",
                                       "a ",
                                       "  a  b  ",
                                       "\n",
                                       " \n ",
                                       "\n\n\n",
                                       "\r\n",
                                       "\t\tx",
                                       std::string("a\0b\0", 4),
                                       std::string(1, '\0'),
                                       "\u2581",
                                       " \u2581 \u2581",
                                       "\U0010F581",
                                       "\U0010F5810\u25811\U0010F5811 ",
                                       "\U0010F581\u2581",
                                       "<s></s><unk><0x41>",
                                       "\uFEFFbom",
                                       "\uFFFD",
                                       "\u00a0\u3000\u2028",
                                       "e\u0301 \u00e9",
                                       "\U0001F469\u200D\U0001F680",
                                       "\u2585",
                                       std::string(5000, 'a'),
                                       std::string(5000, '\n'),
                                       std::string(3000, ' '),
                                       std::string(2047, 'x') + "\u3042\n" + std::string(4100, 'y')};
  for (const std::string& text : nasty) EXPECT_EQ(around(text), text);
}

// SentencePiece takes 150 bytes of memory for each of a text that it gets at once.
TEST_F(TokenizerTest, LongTextWithoutLineEndsIsEncodedInParts) {
  Rng rng(7, "endless");
  const std::vector<std::string> letters = {"mir", "ka", "\u0416", "\u3042", "\U0001F680", "\u2581", "\U0010F581"};
  std::string text;
  while (text.size() < 1'000'000) text += letters[rng.below(letters.size())];
  EXPECT_EQ(around(text), text);
  EXPECT_EQ(around(std::string(300'000, ' ')), std::string(300'000, ' '));

  constexpr size_t kLongest = 2048 + 65536;
  std::string within = "x";  // the border lies within the piece "mir"
  while (within.size() < 2 * kLongest) within += "mir";
  std::vector<int32_t> parts;
  for (const std::string& part : {within.substr(0, kLongest), within.substr(kLongest)}) {
    const std::vector<int32_t> ids = tokenizer_.encode(part);
    parts.insert(parts.end(), ids.begin(), ids.end());
  }
  EXPECT_EQ(tokenizer_.encode(within), parts);
}

// Neither line ends nor spaces lie within a piece, so where there are any the parts give the ids of the whole.
TEST_F(TokenizerTest, PartsGiveTheIdsOfTheWhole) {
  std::string line;
  for (const char letter : made_up_text("line", 6000)) line += letter == '\n' ? ' ' : letter;
  line = line.substr(0, line.rfind("ka", 60'000) + 2);  // one part, and a word at its end
  ASSERT_GT(line.size(), 40'000U);
  for (const std::string& gap : {std::string(" "), std::string("   "), std::string("\n")}) {
    const std::vector<int32_t> begin = tokenizer_.encode("ka" + line);
    const std::vector<int32_t> again = tokenizer_.encode(gap + "ka" + line);
    std::vector<int32_t> expected = begin;
    std::string text = "ka" + line;
    for (int i = 0; i < 4; ++i) {
      expected.insert(expected.end(), again.begin(), again.end());
      text += gap + "ka" + line;
    }
    EXPECT_EQ(tokenizer_.encode(text), expected);
  }
}

TEST_F(TokenizerTest, NamesOfSpecialPiecesAreText) {
  for (const int32_t id : tokenizer_.encode("<s></s><unk>")) EXPECT_GE(id, kFirstBytePiece);
}

TEST_F(TokenizerTest, AnyTextComesBack) {
  EXPECT_TRUE(rc::check("any code points", [this](const std::vector<uint32_t>& seeds) {
    // Half from what the scheme treats specially.
    const std::vector<char32_t> special{0x2581, 0x10F581, '0', '1', ' ', '\n', 0, '\t', 'a', 0x3042};
    std::string text;
    for (const uint32_t seed : seeds) {
      const char32_t any = seed / 2 % 0x110000;
      const bool surrogate = any >= 0xD800 && any < 0xE000;
      append_code_point(seed % 2 == 0 || surrogate ? special[seed / 2 % special.size()] : any, text);
    }
    const std::vector<int32_t> ids = tokenizer_.encode(text);
    RC_ASSERT(tokenizer_.decode(ids) == text);
    RC_ASSERT(std::all_of(ids.begin(), ids.end(), [](int32_t id) { return id > kEndPiece; }));
  }));
}

TEST_F(TokenizerTest, LinesEncodeIndependently) {
  const std::string first = made_up_text("fourth", 3000) + "\n";
  const std::string second = made_up_text("fifth", 300);
  std::vector<int32_t> expected = tokenizer_.encode(first);
  const std::vector<int32_t> rest = tokenizer_.encode(second);
  expected.insert(expected.end(), rest.begin(), rest.end());
  EXPECT_EQ(tokenizer_.encode(first + second), expected);
}

TEST_F(TokenizerTest, BadInputIsRefused) {
  EXPECT_THAT(error_of<DataError>([this] { (void)tokenizer_.encode("ab\xFF"); }), HasSubstr("not UTF-8 at byte 2"));
  EXPECT_THROW((void)tokenizer_.piece(420), UsageError);
  EXPECT_THROW((void)tokenizer_.decode(std::vector<int32_t>{-1}), UsageError);
  EXPECT_EQ(tokenizer_.decode(std::vector<int32_t>{1, 3, 2, 0}), "\n") << "special pieces are no text";
  EXPECT_EQ(tokenizer_.decode(std::vector<int32_t>{kFirstBytePiece + 0xE3}), "\uFFFD");
}

TEST_F(TokenizerTest, LoadsFromAFileOnly) {
  const test::ScratchFolder scratch;
  test::put_file(scratch.path() / "t.model", *model_);
  EXPECT_EQ(Tokenizer(scratch.path() / "t.model").encode("kato"), tokenizer_.encode("kato"));
  test::put_file(scratch.path() / "bad.model", "no model");
  EXPECT_THAT(error_of<DataError>([&] { Tokenizer t(scratch.path() / "bad.model"); }), HasSubstr("bad.model"));
  test::put_file(scratch.path() / "cut.model", model_->substr(0, model_->size() / 2));
  EXPECT_THROW(Tokenizer(scratch.path() / "cut.model"), DataError);
}

TEST_F(TokenizerTest, TrainingIsDeterministic) {
  EXPECT_EQ(train_small(small_options()), *model_);
  TokenizerOptions one_thread = small_options();
  one_thread.num_threads = 1;
  const Tokenizer serial = Tokenizer::from_bytes(train_small(one_thread), "serial");
  const std::string text = made_up_text("sixth", 2000);
  EXPECT_EQ(serial.encode(text), tokenizer_.encode(text));
}

// Of a domain twenty times its share, the end is heard as well as the beginning.
TEST_F(TokenizerTest, TheSampleReachesThroughEachDomain) {
  TokenizerOptions options = small_options();
  options.sample_bytes = 100000;
  const std::string varied = made_up_text("first", 6000);
  std::string halves;
  for (int i = 0; i < 100000; ++i) halves += i < 50000 ? "qqqq vvvv\n" : "jjjj wwww\n";
  const std::vector<std::vector<std::string_view>> domains{{varied}, {halves}};
  const Tokenizer sampled = Tokenizer::from_bytes(train_tokenizer(domains, options), "sampled");
  EXPECT_EQ(sampled.encode("qqqq vvvv").size(), 2U);
  EXPECT_EQ(sampled.encode("jjjj wwww").size(), 2U);
}

TEST_F(TokenizerTest, TooLittleTextIsAClearError) {
  const std::vector<std::vector<std::string_view>> domains{{"abc abc"}};
  EXPECT_THAT(error_of<DataError>([&] { (void)train_tokenizer(domains, small_options()); }),
              HasSubstr("no tokenizer of 420 pieces"));
  TokenizerOptions tiny;
  tiny.vocab_size = 260;
  EXPECT_THAT(error_of<UsageError>([&] { (void)train_tokenizer(domains, tiny); }), HasSubstr("more than the 260"));
}

TEST_F(TokenizerTest, ExportHoldsEveryPieceAndSplit) {
  const test::ScratchFolder scratch;
  test::put_file(scratch.path() / "t.model", *model_);
  export_tokenizer_for_transformers(scratch.path() / "t.model", scratch.path());
  const auto json = nlohmann::json::parse(read_file(scratch.path() / "tokenizer.json"));
  const auto& vocabulary = json.at("model").at("vocab");
  ASSERT_EQ(vocabulary.size(), 420U);
  for (int64_t id = 0; id < 420; ++id) EXPECT_EQ(vocabulary.at(tokenizer_.piece(id)).get<int64_t>(), id);
  // Every merge makes a piece, and merges of better (earlier) pieces come first.
  int64_t last = 0;
  for (const auto& merge : json.at("model").at("merges")) {
    const auto id = vocabulary.at(merge[0].get<std::string>() + merge[1].get<std::string>()).get<int64_t>();
    EXPECT_GE(id, last);
    last = id;
  }
  const auto config = nlohmann::json::parse(read_file(scratch.path() / "tokenizer_config.json"));
  EXPECT_EQ(config.at("eos_token"), "</s>");
}

}  // namespace
}  // namespace switchyard
