#include "switchyard/data/dataset.hpp"

#include <algorithm>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/recipes.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

size_t slot_of(int64_t domain, Split split) { return static_cast<size_t>(domain) * 2 + (split == Split::Train ? 0 : 1); }

// A manifest is text that anybody may have edited; a file name must not lead out of the folder.
void check_file_name(const fs::path& manifest, const std::string& file) {
  SWITCHYARD_CHECK(!file.empty() && fs::path(file).filename() == file && file != "." && file != "..", DataError,
                   manifest.string(), ": '", file, "' is not a plain file name");
}

// A working folder that is another than it was is as likely as a data set that was never made.
std::string missing_text(const fs::path& folder) {
  std::error_code ignored;
  const fs::path whole = fs::absolute(folder, ignored).lexically_normal();
  const std::string name = folder_name(folder);
  const auto has_name = [&](const Preset& preset) { return preset.name == name; };
  const bool is_preset = std::any_of(preset_table().begin(), preset_table().end(), has_name);
  const std::string out = fs::exists(folder, ignored) ? "NEW_FOLDER" : quoted_for_shell(whole.string());
  return join_text("no data set in ", whole.string(), " (it has no manifest.json). ",
                   folder.is_relative() ? "A relative path starts at the folder you are in: go to the right one, or name the data set,"
                                        : "If it lies elsewhere, name it",
                   " with --set data.path=DIR (testbed: --set run.data.path=DIR, export: --data DIR). Make one with: ",
                   "switchyard data build ",
                   is_preset ? join_text("--preset ", name, " --out ", out)
                             : join_text("--preset mix8 --out ", out,
                                         ", or of your own text with --from TEXT in place of --preset mix8"));
}

TokenShard open_shard(const fs::path& folder, const SplitRecord& split, int64_t vocab_size, ShardCheck check) {
  check_file_name(folder / "manifest.json", split.file);
  TokenShard shard(folder / split.file, check);
  SWITCHYARD_CHECK(
      shard.num_documents() == split.documents && shard.num_tokens() == split.tokens && shard.vocab_size() == vocab_size,
      DataError, (folder / split.file).string(), " holds ", shard.num_documents(), " documents and ", shard.num_tokens(),
      " tokens of a vocabulary of ", shard.vocab_size(), "; the manifest says ", split.documents, ", ", split.tokens, " and ",
      vocab_size, "; build the data set again");
  return shard;
}

}  // namespace

Dataset::Dataset(const fs::path& folder, ShardCheck check) : folder_(folder) {
  const fs::path path = folder / "manifest.json";
  SWITCHYARD_CHECK(path_exists(path), DataError, missing_text(folder));
  const std::string text = read_file(path);
  manifest_ = manifest_from_json(text, path.string());
  hash_ = sha256_hex(text);
  first_documents_.push_back(0);
  for (const DomainRecord& domain : manifest_.domains) {
    for (const SplitRecord* split : {&domain.train, &domain.heldout}) {
      shards_.push_back(open_shard(folder, *split, manifest_.vocab_size, check));
      first_documents_.push_back(first_documents_.back() + shards_.back().num_documents());
    }
  }
  SWITCHYARD_CHECK(!shards_.empty(), DataError, path.string(), " lists no domain; build the data set again");
}

void Dataset::check_files() const {
  const auto check = [this](const fs::path& file, const std::string& expected) {
    SWITCHYARD_CHECK(sha256_file(file) == expected, DataError, file.string(),
                     " is not the file that this data set was built with: its SHA-256 is not the one in ",
                     (folder_ / "manifest.json").string(), "; put the old file back, or build the data set again");
  };
  check(tokenizer_path(), manifest_.tokenizer_sha256);
  for (const DomainRecord& domain : manifest_.domains) {
    for (const SplitRecord* split : {&domain.train, &domain.heldout}) check(folder_ / split->file, split->sha256);
  }
}

std::vector<std::string> Dataset::domain_names() const {
  std::vector<std::string> names;
  for (const DomainRecord& domain : manifest_.domains) names.push_back(domain.name);
  return names;
}

int64_t Dataset::domain_index(std::string_view name) const {
  const std::vector<std::string> names = domain_names();
  const auto found = std::find(names.begin(), names.end(), name);
  SWITCHYARD_CHECK(found != names.end(), UsageError, folder_.string(), ": ", unknown_name("domain", name, names));
  return found - names.begin();
}

std::vector<int64_t> Dataset::select_domains(const std::vector<std::string>& names) const {
  std::vector<int64_t> selected(names.empty() ? manifest_.domains.size() : 0);
  std::iota(selected.begin(), selected.end(), int64_t{0});
  for (const std::string& name : names) {
    const int64_t domain = domain_index(name);
    SWITCHYARD_CHECK(std::find(selected.begin(), selected.end(), domain) == selected.end(), UsageError, "domain '", name,
                     "' is given twice; name each domain once");
    selected.push_back(domain);
  }
  return selected;
}

const TokenShard& Dataset::shard(int64_t domain, Split split) const {
  SWITCHYARD_CHECK(domain >= 0 && domain < num_domains(), UsageError, "domain ", domain, " was asked for; ", folder_.string(),
                   " has ", num_domains());
  return shards_[slot_of(domain, split)];
}

int64_t Dataset::first_document(int64_t domain, Split split) const {
  SWITCHYARD_CHECK(domain >= 0 && domain < num_domains(), UsageError, "domain ", domain, " was asked for; ", folder_.string(),
                   " has ", num_domains());
  return first_documents_[slot_of(domain, split)];
}

int64_t Dataset::num_documents() const { return first_documents_.back(); }

}  // namespace switchyard
