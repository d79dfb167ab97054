#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/tokenizer.hpp"
#include "switchyard/data/tokenizer_impl.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

// SentencePiece learns from lines and skips those that are longer than this.
constexpr size_t kLongestLine = 4096;

// Cuts a line into parts that SentencePiece accepts, between characters. NULs are not accepted in training and carry nothing.
void add_line(std::string_view line, std::vector<std::string>& lines) {
  std::string text = escape_space_marks(line);
  std::erase(text, '\0');
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = character_begin(text, std::min(at + kLongestLine, text.size()));
    lines.push_back(text.substr(at, end - at));
    at = end;
  }
}

// Lines of blocks at even distances, `share` bytes in all: the parts of a domain differ (help first, manual pages later).
void sample_domain(const std::vector<std::string_view>& documents, int64_t share, std::vector<std::string>& lines) {
  constexpr int64_t kBlock = 8192;
  int64_t total = 0;
  for (const std::string_view document : documents) total += static_cast<int64_t>(document.size());
  const int64_t blocks = std::max<int64_t>(1, share / kBlock);
  int64_t position = 0;  // bytes of the domain before this line
  int64_t taken = 0;
  for (const std::string_view document : documents) {
    for (size_t at = 0; at < document.size();) {
      const size_t end = std::min(document.find('\n', at), document.size());
      const std::string_view line = document.substr(at, end - at);
      // Block b may begin at b * total / blocks; a line is taken while less was taken than began up to here.
      const int64_t begun = std::min(blocks, position * blocks / std::max<int64_t>(total, 1) + 1);
      if (total <= share || taken < begun * kBlock) {
        add_line(line, lines);
        taken += static_cast<int64_t>(line.size()) + 1;
      }
      position += static_cast<int64_t>(line.size()) + 1;
      at = end + 1;
    }
  }
}

class LineIterator : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(const std::vector<std::string>& lines) : lines_(lines) {}
  [[nodiscard]] bool done() const override { return at_ >= lines_.size(); }
  void Next() override { ++at_; }
  [[nodiscard]] const std::string& value() const override { return lines_[at_]; }
  [[nodiscard]] sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  size_t at_ = 0;
};

std::unordered_map<std::string, std::string> trainer_settings(const TokenizerOptions& options) {
  constexpr std::string_view kNoOutput = "3";  // log level: the library does not print
  return {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"character_coverage", join_text(options.character_coverage)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"user_defined_symbols", "\n"},
      {"unk_id", std::to_string(kUnknownPiece)},
      {"bos_id", std::to_string(kBeginPiece)},
      {"eos_id", std::to_string(kEndPiece)},
      {"pad_id", "-1"},
      {"max_sentence_length", std::to_string(2 * kLongestLine)},
      {"num_threads", std::to_string(options.num_threads)},
      {"minloglevel", std::string(kNoOutput)},
  };
}

// SentencePiece says "Internal: file(line) [condition] sentence".
std::string reason_of(const std::string& text) {
  const size_t end = text.rfind("] ");
  return end == kNotFound ? text : text.substr(end + 2);
}

}  // namespace

std::string train_tokenizer(std::span<const std::vector<std::string_view>> domains, const TokenizerOptions& options) {
  constexpr int64_t kFixedPieces = kFirstBytePiece + 256;
  SWITCHYARD_CHECK(options.vocab_size > kFixedPieces, UsageError, "a vocabulary of ", options.vocab_size,
                   " pieces was asked for; expected more than the ", kFixedPieces, " special and byte pieces");
  std::vector<std::string> lines;
  const int64_t share = options.sample_bytes / std::max<int64_t>(1, static_cast<int64_t>(domains.size()));
  for (const std::vector<std::string_view>& documents : domains) sample_domain(documents, share, lines);
  LineIterator iterator(lines);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(trainer_settings(options), &iterator, &model);
  const std::string reason = reason_of(status.ToString());
  // It goes on with advice about options that are not ours.
  const bool has_many_characters = reason.find("smaller than required_chars") != kNotFound;
  SWITCHYARD_CHECK(!has_many_characters, DataError, "a vocabulary of ", options.vocab_size,
                   " pieces cannot hold all characters of the text (", reason.substr(0, reason.find(". Increase")), "); give a larger one (--vocab-size)");
  SWITCHYARD_CHECK(status.ok(), DataError, "no tokenizer of ", options.vocab_size, " pieces could be learned (", reason,
                   "); give more text or a smaller vocabulary");
  return model;
}

}  // namespace switchyard
