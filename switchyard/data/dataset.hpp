#pragma once
// A data set folder, opened for reading:
//
//   manifest.json                    what is in it (manifest.hpp)
//   tokenizer.model                  SentencePiece
//   tokenizer.json, tokenizer_config.json   the same tokenizer for transformers
//   <domain>.train.tokens, <domain>.heldout.tokens   token shards (shard.hpp)

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/data/manifest.hpp"
#include "switchyard/data/shard.hpp"

namespace switchyard {

enum class Split { Train, Heldout };

/// Read-only; may be shared by threads. N domains, numbered as in the manifest.
class Dataset {
 public:
  /// @param check  Tokens reads each shard once and compares its CRC (tens of milliseconds per 100 MB)
  /// @throws DataError when the folder is no data set, or a file is missing, damaged or does not fit the manifest
  explicit Dataset(const std::filesystem::path& folder, ShardCheck check = ShardCheck::Tokens);

  /// Compares the SHA-256 of tokenizer.model and of every shard with the manifest (a second per 500 MB).
  /// @throws DataError naming the file that is missing or another one
  void check_files() const;

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] const std::string& hash() const { return hash_; }  // SHA-256 of manifest.json
  [[nodiscard]] int64_t vocab_size() const { return manifest_.vocab_size; }
  [[nodiscard]] int64_t end_of_document() const { return manifest_.end_of_document; }
  [[nodiscard]] std::filesystem::path tokenizer_path() const { return folder_ / "tokenizer.model"; }

  [[nodiscard]] int64_t num_domains() const { return static_cast<int64_t>(manifest_.domains.size()); }
  [[nodiscard]] std::vector<std::string> domain_names() const;
  /// @throws UsageError with the known names and the nearest one
  [[nodiscard]] int64_t domain_index(std::string_view name) const;
  /// Numbers of the named domains in the order given; all domains for an empty list. A name twice is an error.
  [[nodiscard]] std::vector<int64_t> select_domains(const std::vector<std::string>& names) const;

  [[nodiscard]] const TokenShard& shard(int64_t domain, Split split) const;
  /// Documents are numbered through the data set: domain by domain, train before held-out.
  [[nodiscard]] int64_t first_document(int64_t domain, Split split) const;
  [[nodiscard]] int64_t num_documents() const;

 private:
  std::filesystem::path folder_;
  Manifest manifest_;
  std::string hash_;
  std::vector<TokenShard> shards_;        // domain * 2 + split
  std::vector<int64_t> first_documents_;  // the same order, and the total at the end
};

}  // namespace switchyard
