#pragma once
// SentencePiece BPE with byte fallback: any UTF-8 text, NUL and newlines included, comes back as it was.
//
// Piece ids: 0 <unk> (never produced), 1 <s>, 2 </s> (end of a document), 3 newline, 4..259 the bytes <0x00>..<0xFF>, then
// the learned pieces. Names of special pieces in text ("</s>") are ordinary text.
//
// SentencePiece writes a space as U+2581 and would read a U+2581 of the text as a space. So text is escaped first, with the
// private-use character X = U+10F581: X becomes "X0", then U+2581 becomes "X1"; decoding undoes it in reverse order.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

inline constexpr int64_t kUnknownPiece = 0;
inline constexpr int64_t kBeginPiece = 1;
inline constexpr int64_t kEndPiece = 2;
inline constexpr int64_t kNewlinePiece = 3;
inline constexpr int64_t kFirstBytePiece = 4;

struct TokenizerOptions {
  int64_t vocab_size = 8192;           // pieces, special and byte pieces included
  double character_coverage = 0.9995;  // share of the text's characters that get a piece; the rest is spelt in bytes
  int64_t sample_bytes = 6'000'000;    // text to learn from, shared equally by the domains; bounds the time
  int64_t num_threads = 2;             // does not change the result
};

/// Learns a tokenizer. The sample takes lines at even distances through each domain, so it is the same every time.
/// @param domains  documents of each domain; a domain with less than its share gives all it has
/// @return the bytes of a SentencePiece model
/// @throws DataError when SentencePiece refuses (too little text for so many pieces), with its reason
[[nodiscard]] std::string train_tokenizer(std::span<const std::vector<std::string_view>> domains,
                                          const TokenizerOptions& options);

/// Not copyable; may be used by several threads at once.
class Tokenizer {
 public:
  /// @throws DataError naming the file when it is no model of this kind
  explicit Tokenizer(const std::filesystem::path& model);
  static Tokenizer from_bytes(std::string_view model, std::string_view name);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;

  /// Ids without begin or end. Where text has neither newline nor space for 64 KB, a piece ends there.
  /// @throws DataError for text that is not UTF-8, with the byte offset
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text) const;
  /// Text of any ids; <unk>, <s> and </s> are left out. Bytes that make no character become U+FFFD.
  [[nodiscard]] std::string decode(std::span<const int32_t> ids) const;

  [[nodiscard]] int64_t vocab_size() const;
  /// As SentencePiece spells it: a space is U+2581. @throws UsageError for an id outside the vocabulary
  [[nodiscard]] std::string piece(int64_t id) const;

  struct Impl;

 private:
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  friend std::string tokenizer_json(const Tokenizer& tokenizer);
  std::unique_ptr<Impl> impl_;
};

/// The same tokenizer as the `tokenizer.json` of Hugging Face's tokenizers.
[[nodiscard]] std::string tokenizer_json(const Tokenizer& tokenizer);

/// Writes tokenizer.json and tokenizer_config.json, so that transformers.AutoTokenizer.from_pretrained(out_dir) gives the
/// same ids and the same text. The folder must exist. @throws DataError
void export_tokenizer_for_transformers(const std::filesystem::path& model_path, const std::filesystem::path& out_dir);

}  // namespace switchyard
