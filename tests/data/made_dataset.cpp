#include "tests/data/made_dataset.hpp"

#include "switchyard/core/files.hpp"
#include "switchyard/data/manifest.hpp"
#include "switchyard/data/shard.hpp"

namespace switchyard::test {
namespace {

namespace fs = std::filesystem;

SplitRecord put_split(const fs::path& folder, const std::string& file, const std::vector<std::vector<int32_t>>& documents,
                      int64_t vocab_size) {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> offsets{0};
  for (const std::vector<int32_t>& document : documents) {
    tokens.insert(tokens.end(), document.begin(), document.end());
    tokens.push_back(2);
    offsets.push_back(tokens.size());
  }
  write_shard(folder / file, tokens, offsets, vocab_size);
  return {file, sha256_file(folder / file), static_cast<int64_t>(documents.size()), static_cast<int64_t>(tokens.size())};
}

}  // namespace

void make_dataset(const fs::path& folder, const std::map<std::string, DomainTokens>& domains, int64_t vocab_size) {
  fs::create_directories(folder);
  Manifest manifest;
  manifest.source = "folder";
  manifest.vocab_size = vocab_size;
  manifest.end_of_document = 2;
  manifest.heldout_fraction = 0.05;
  constexpr std::string_view kTokenizer = "no tokenizer: nothing that reads made data sets needs one";
  write_file_atomically(folder / "tokenizer.model", kTokenizer);
  manifest.tokenizer_sha256 = sha256_hex(kTokenizer);
  for (const auto& [name, tokens] : domains) {
    DomainRecord record;
    record.name = name;
    record.documents = static_cast<int64_t>(tokens.train.size() + tokens.heldout.size());
    record.train = put_split(folder, name + ".train.tokens", tokens.train, vocab_size);
    record.heldout = put_split(folder, name + ".heldout.tokens", tokens.heldout, vocab_size);
    manifest.domains.push_back(record);
  }
  write_file_atomically(folder / "manifest.json", manifest_to_json(manifest));
}

}  // namespace switchyard::test
