#pragma once
// One file of tokens with document boundaries, read through a memory map. Little-endian:
//
//   offset  size  field
//        0     8  magic "SWYTOKEN"
//        8     4  format version, 1
//       12     4  bytes per token: 2 if the vocabulary fits in 16 bits, else 4
//       16     8  vocabulary size; every token is below it
//       24     8  number of documents D
//       32     8  number of tokens N
//       40     4  CRC-32 of the document offsets
//       44     4  CRC-32 of the tokens
//       48    12  zero
//       60     4  CRC-32 of bytes 0..59
//       64  8(D+1)  offsets: document d is the tokens [offset_d, offset_(d+1)); never fall, first 0, last N
//        .   w N  tokens
//
// docs/data.md repeats this for readers in other languages.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace switchyard {

inline constexpr int64_t kShardVersion = 1;

/// Writes a whole shard, atomically.
/// @param tokens   document after document
/// @param offsets  D + 1 numbers as in the format above
/// @throws ShapeError for offsets that do not fit or a token outside the vocabulary; DataError when it cannot be written
void write_shard(const std::filesystem::path& path, std::span<const int32_t> tokens, std::span<const uint64_t> offsets,
                 int64_t vocab_size);

enum class ShardCheck {
  Structure,  // header, size, offsets: costs 8 bytes read per document
  Tokens,     // and the CRC of the tokens: reads the whole file once
};

/// Read-only view. Cheap to move; may be read from several threads.
class TokenShard {
 public:
  /// @throws DataError that names the file and says what is wrong with it
  explicit TokenShard(const std::filesystem::path& path, ShardCheck check = ShardCheck::Tokens);
  ~TokenShard();
  TokenShard(TokenShard&&) noexcept;
  TokenShard& operator=(TokenShard&&) noexcept;

  [[nodiscard]] int64_t num_tokens() const;
  [[nodiscard]] int64_t num_documents() const;
  [[nodiscard]] int64_t vocab_size() const;
  [[nodiscard]] int64_t bytes_per_token() const;  // in the file, 2 or 4: for who measures reading

  /// First token of document d; document_start(num_documents()) is num_tokens().
  [[nodiscard]] int64_t document_start(int64_t document) const;
  /// The document that holds a token.
  [[nodiscard]] int64_t document_of(int64_t token) const;
  /// Copies out.size() tokens from `first` on. Throws ShapeError when that leaves the shard.
  void copy_tokens(int64_t first, std::span<int64_t> out) const;
  void copy_tokens(int64_t first, std::span<int32_t> out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
