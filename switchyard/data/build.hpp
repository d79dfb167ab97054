#pragma once
// From packages or a folder of text to a data set (dataset.hpp).

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/data/documents.hpp"
#include "switchyard/data/package_fetch.hpp"
#include "switchyard/data/progress.hpp"
#include "switchyard/data/tokenizer.hpp"

namespace switchyard {

inline constexpr int64_t kPackageTextCap = 8'000'000;

struct BuildOptions {
  std::string preset = "mix16";         // of preset_table(); not used with `from`
  std::filesystem::path from;           // a folder with one folder of text files per domain; empty: packages
  std::filesystem::path out;            // must not exist
  std::filesystem::path package_cache;  // empty: default_package_cache()
  std::optional<int64_t> cap_bytes;     // text of a domain; unset: kPackageTextCap for packages, none for own text; 0: none
  double heldout_fraction = 0.05;       // of each domain's bytes, in (0, 0.5]
  TokenizerOptions tokenizer;
  int64_t num_threads = 2;
};

/// Builds the data set and puts it in place whole; on any error nothing is left under the final name. The same packages (or
/// files) and options give the same bytes.
/// @throws UsageError for options that make no sense; DataError for what cannot be fetched, read or written
void build_dataset(const BuildOptions& options, Progress& progress);

/// The same with packages from somewhere else than apt.
void build_dataset(const BuildOptions& options, PackageFetcher& fetcher, Progress& progress);

/// Reads one folder of text files: each file is a document, longer ones are cut behind every 64 KB at blank lines, else line
/// ends, else (none for 128 KB more) before spaces or between characters. Hidden files are passed over; files are taken in
/// order of their paths. Links to files and folders are followed.
/// @throws DataError naming file and byte offset for text that is not UTF-8, and links that lead nowhere or in a circle
[[nodiscard]] DomainText read_text_folder(const std::filesystem::path& folder, int64_t cap_bytes);

/// Which documents are held out. Takes them by rising hash of their text until they make `fraction` of the bytes or, where that is
/// more, 64 sequences of 512 tokens; for these at most a fifth of the bytes. Long documents can overshoot, up to half of the bytes;
/// where all are too long for that, the shortest is taken. So the choice does not depend on order, and the documents lie evenly
/// over the domain.
/// @throws DataError naming the domain when it has fewer than two documents
[[nodiscard]] std::vector<bool> choose_heldout(const std::string& domain, const DomainText& text, double fraction);

}  // namespace switchyard
