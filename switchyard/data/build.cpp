#include "switchyard/data/build.hpp"

#include <algorithm>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/data/manifest.hpp"
#include "switchyard/data/parallel.hpp"
#include "switchyard/data/phase_counter.hpp"
#include "switchyard/data/recipes.hpp"
#include "switchyard/data/shard.hpp"
#include "switchyard/data/sources.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

void check_options(const BuildOptions& options) {
  SWITCHYARD_CHECK(!options.out.empty(), UsageError, "no folder for the data set was given");
  SWITCHYARD_CHECK(options.heldout_fraction > 0.0 && options.heldout_fraction <= 0.5, UsageError, "held-out fraction ",
                   options.heldout_fraction, " was given; expected a number in (0, 0.5]");
  SWITCHYARD_CHECK(options.cap_bytes.value_or(0) >= 0, UsageError, "a cap of ", options.cap_bytes.value_or(0),
                   " bytes was given; expected 0 (none) or more");
  SWITCHYARD_CHECK(options.num_threads >= 1, UsageError, options.num_threads, " threads were asked for; expected at least 1");
  if (options.from.empty()) (void)find_preset(options.preset);
  SWITCHYARD_CHECK(options.from.empty() || folder_exists(options.from), UsageError, "no folder ", options.from.string(),
                   "; expected one that holds a folder of text files per domain");
}

// Documents of one domain by split.
struct Parts {
  std::vector<std::string_view> train;
  std::vector<std::string_view> heldout;
};

Parts split_domain(const SourceDomain& domain, double fraction) {
  const std::vector<bool> held = choose_heldout(domain.record.name, domain.text, fraction);
  Parts parts;
  for (size_t i = 0; i < held.size(); ++i) (held[i] ? parts.heldout : parts.train).emplace_back(domain.text.documents[i]);
  return parts;
}

SplitRecord write_split(const fs::path& folder, const std::string& file, const std::vector<std::string_view>& documents,
                        const Tokenizer& tokenizer) {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> offsets{0};
  for (const std::string_view document : documents) {
    const std::vector<int32_t> ids = tokenizer.encode(document);
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    tokens.push_back(static_cast<int32_t>(kEndPiece));
    offsets.push_back(tokens.size());
  }
  write_shard(folder / file, tokens, offsets, tokenizer.vocab_size());
  return {file, sha256_file(folder / file), static_cast<int64_t>(documents.size()), static_cast<int64_t>(tokens.size())};
}

std::string learn_tokenizer(const std::vector<Parts>& parts, const BuildOptions& options, Progress& progress) {
  PhaseCounter phase(progress, "tokenizer", 1);
  std::vector<std::vector<std::string_view>> samples;
  // Held-out text stays unseen here too.
  for (const Parts& part : parts) samples.push_back(part.train);
  std::string model = train_tokenizer(samples, options.tokenizer);
  phase.add(1);
  return model;
}

void build_from(std::vector<SourceDomain> domains, const BuildOptions& options, StagedFolder& folder, Progress& progress) {
  std::vector<Parts> parts;
  for (const SourceDomain& domain : domains) parts.push_back(split_domain(domain, options.heldout_fraction));
  const std::string model = learn_tokenizer(parts, options, progress);
  const fs::path model_path = folder.path() / "tokenizer.model";
  write_file_atomically(model_path, model);
  export_tokenizer_for_transformers(model_path, folder.path());
  const Tokenizer tokenizer(model_path);

  const auto count = static_cast<int64_t>(domains.size());
  PhaseCounter encoded(progress, "encode", count);
  run_in_parallel(count, options.num_threads, [&](int64_t index) {
    DomainRecord& record = domains[static_cast<size_t>(index)].record;
    const Parts& part = parts[static_cast<size_t>(index)];
    record.train = write_split(folder.path(), record.name + ".train.tokens", part.train, tokenizer);
    record.heldout = write_split(folder.path(), record.name + ".heldout.tokens", part.heldout, tokenizer);
    encoded.add(1);
  });

  Manifest manifest;
  manifest.source = options.from.empty() ? options.preset : "folder";
  manifest.cap_bytes = options.cap_bytes.value_or(options.from.empty() ? kPackageTextCap : 0);
  manifest.vocab_size = tokenizer.vocab_size();
  manifest.end_of_document = kEndPiece;
  manifest.tokenizer_sha256 = sha256_hex(model);
  manifest.heldout_fraction = options.heldout_fraction;
  for (SourceDomain& domain : domains) manifest.domains.push_back(std::move(domain.record));
  write_file_atomically(folder.path() / "manifest.json", manifest_to_json(manifest));
}

}  // namespace

std::vector<bool> choose_heldout(const std::string& domain, const DomainText& text, double fraction) {
  // 64 sequences of 513 tokens at up to 8 bytes a token.
  constexpr double kLeastBytes = 64 * 513 * 8;
  constexpr double kLargestShare = 0.2;
  const size_t count = text.documents.size();
  SWITCHYARD_CHECK(count >= 2, DataError, "domain '", domain, "' has ", count,
                   " document(s); the split by document needs at least 2: give more files");
  const auto bytes = static_cast<double>(text.bytes);
  const double target = std::max(fraction * bytes, std::min(kLeastBytes, kLargestShare * bytes));
  std::vector<std::pair<uint64_t, size_t>> order;
  for (size_t i = 0; i < count; ++i) order.emplace_back(hash_text(text.documents[i]), i);
  std::sort(order.begin(), order.end());
  std::vector<bool> held(count, false);
  double taken = 0.0;
  size_t number = 0;
  for (const auto& [hash, index] : order) {
    const auto size = static_cast<double>(text.documents[index].size() + 1);
    // One document much longer than the rest must not become the whole held-out set, or leave nothing to train on.
    const bool too_long = taken + size > std::max(2.0 * target, target + kLeastBytes) || taken + size > 0.5 * bytes;
    if (taken >= target || too_long) continue;
    held[index] = true;
    taken += size;
    ++number;
  }
  if (number == 0) {
    const auto shorter = [](const std::string& left, const std::string& right) { return left.size() < right.size(); };
    held[static_cast<size_t>(std::min_element(text.documents.begin(), text.documents.end(), shorter) -
                             text.documents.begin())] = true;
  }
  return held;
}

void build_dataset(const BuildOptions& options, PackageFetcher& fetcher, Progress& progress) {
  check_options(options);
  StagedFolder folder(options.out);  // first, so that a folder in the way costs no download
  build_from(options.from.empty() ? load_preset(options, fetcher, progress) : load_folder(options, progress), options, folder,
             progress);
  folder.commit();
}

void build_dataset(const BuildOptions& options, Progress& progress) {
  check_options(options);
  if (!options.from.empty()) {
    FolderFetcher unused(options.from);
    build_dataset(options, unused, progress);
    return;
  }
  AptFetcher fetcher(options.package_cache.empty() ? default_package_cache() : options.package_cache);
  build_dataset(options, fetcher, progress);
}

}  // namespace switchyard
