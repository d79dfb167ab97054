#pragma once
// manifest.json: what a data set holds and where it came from. No dates and no machine paths, so that equal packages give
// equal bytes.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

inline constexpr int64_t kDatasetVersion = 1;

/// One Debian package file that text was taken from.
struct PackageRecord {
  std::string name;
  std::string version;
  std::string file;    // as downloaded
  std::string sha256;  // of the .deb
  int64_t bytes = 0;

  bool operator==(const PackageRecord&) const = default;
};

/// The documents of one split of one domain.
struct SplitRecord {
  std::string file;    // name of the token shard
  std::string sha256;  // of that file
  int64_t documents = 0;
  int64_t tokens = 0;  // end-of-document tokens included

  bool operator==(const SplitRecord&) const = default;
};

struct DomainRecord {
  std::string name;
  std::string description;  // one line; empty for own text
  std::string license;      // as the packages' copyright files say; empty for own text
  std::vector<PackageRecord> packages;
  std::string text_sha256;  // of all documents, each followed by one NUL byte
  int64_t text_bytes = 0;   // the same bytes, NULs included
  int64_t documents = 0;
  SplitRecord train;
  SplitRecord heldout;

  bool operator==(const DomainRecord&) const = default;
};

struct Manifest {
  std::string source;             // "mix8", "mix16" or "folder"
  int64_t cap_bytes = 0;          // of each domain's text; 0: none
  int64_t vocab_size = 0;         // pieces of the tokenizer
  int64_t end_of_document = 0;    // token that ends each document
  std::string tokenizer_sha256;   // of tokenizer.model
  double heldout_fraction = 0.0;  // asked for, of each domain's bytes
  std::vector<DomainRecord> domains;

  bool operator==(const Manifest&) const = default;
};

/// Names become file names and config keys: letters, digits, '_' and '-' only.
[[nodiscard]] bool is_domain_name(std::string_view name);

/// JSON, two-space indent, keys in the order above.
[[nodiscard]] std::string manifest_to_json(const Manifest& manifest);

/// @param name  of the file, for messages
/// @throws DataError naming the file, and the key that is missing, of the wrong type or out of range
[[nodiscard]] Manifest manifest_from_json(std::string_view text, std::string_view name);

}  // namespace switchyard
