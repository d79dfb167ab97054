#include "switchyard/data/sources.hpp"

#include <algorithm>
#include <cctype>
#include <set>
#include <system_error>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/package_archive.hpp"
#include "switchyard/data/parallel.hpp"
#include "switchyard/data/phase_counter.hpp"
#include "switchyard/data/recipes.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

PackageRecord package_record(const fs::path& deb) {
  const PackageControl control = read_package_control(deb);
  return {control.name, control.version, deb.filename().string(), sha256_file(deb), static_cast<int64_t>(fs::file_size(deb))};
}

void finish_record(SourceDomain& domain) {
  domain.record.text_sha256 = text_hash(domain.text);
  domain.record.text_bytes = domain.text.bytes;
  domain.record.documents = static_cast<int64_t>(domain.text.documents.size());
}

SourceDomain extract_domain(const Recipe& recipe, const PackagePaths& paths, int64_t cap_bytes) {
  const PackageReader read = [&](std::string_view package, const FileFilter& wanted) {
    return read_package(paths.at(std::string(package)), wanted);
  };
  SourceDomain domain;
  domain.record.name = recipe.name;
  domain.record.description = recipe.description;
  domain.record.license = recipe.license;
  DocumentSink sink(cap_bytes);
  try {
    recipe.extract(read, sink);
    for (const std::string_view package : recipe.packages) {
      domain.record.packages.push_back(package_record(paths.at(std::string(package))));
    }
  } catch (const DataError& error) {
    throw DataError(join_text("domain '", recipe.name, "': ", error.what()));
  }
  domain.text = sink.take();
  SWITCHYARD_CHECK(!domain.text.documents.empty(), DataError, "domain '", recipe.name, "' came out empty: ",
                   "its packages hold none of the files that the recipe reads, or the first document is over the cap of ",
                   cap_bytes, " bytes");
  finish_record(domain);
  return domain;
}

void check_domain_name(const fs::path& folder) {
  SWITCHYARD_CHECK(is_domain_name(folder.filename().string()), DataError, "folder ", folder.string(),
                   " cannot name a domain; use letters, digits, '_' and '-' only");
}

// A link that leads nowhere is text that its owner believes to be there.
void check_link(const fs::directory_entry& entry) {
  std::error_code error;
  if (!entry.is_symlink(error) || fs::exists(entry.path(), error)) return;
  throw DataError(join_text("link ", entry.path().string(), " leads to ", fs::read_symlink(entry.path(), error).string(),
                            ", which is not there or cannot be reached; mend the link or take it out"));
}

// The folder without links. What lies in it would be read for ever if it held one of `way`, the folders down to it.
fs::path real_folder(const fs::path& folder, const std::vector<fs::path>& way) {
  std::error_code error;
  fs::path real = fs::canonical(folder, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot read folder ", folder.string(), ": ", error.message());
  for (const fs::path& above : way) {
    const bool holds_it = std::mismatch(real.begin(), real.end(), above.begin(), above.end()).first == real.end();
    SWITCHYARD_CHECK(!holds_it, DataError, "link ", folder.string(), " leads to ", real.string(),
                     ", a folder that it lies in itself; take the link out");
  }
  return real;
}

// @param keep  of fs::file_type
template <typename Keep>
std::vector<fs::path> visible_entries(const fs::path& folder, const Keep& keep) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().starts_with('.')) continue;
    check_link(*entry);
    std::error_code unseen;  // a folder may be read and not be entered
    const fs::file_type type = entry->status(unseen).type();
    SWITCHYARD_CHECK(!unseen, DataError, "cannot look at ", entry->path().string(), ": ", unseen.message());
    if (keep(type)) found.push_back(entry->path());
  }
  SWITCHYARD_CHECK(!error, DataError, "cannot read folder ", folder.string(), ": ", error.message());
  std::sort(found.begin(), found.end());
  return found;
}

// Files of a folder and the folders in it, links followed.
// @param way  the folders down to this one
void collect_files(const fs::path& folder, std::vector<fs::path>& way, std::vector<fs::path>& files) {
  way.push_back(real_folder(folder, way));
  const auto wanted = [](fs::file_type type) { return type == fs::file_type::directory || type == fs::file_type::regular; };
  for (const fs::path& path : visible_entries(folder, wanted)) {
    if (folder_exists(path)) {
      collect_files(path, way, files);
    } else {
      files.push_back(path);
    }
  }
  way.pop_back();
}

struct DocumentCut {
  size_t end = 0;   // of a document
  size_t next = 0;  // where the next one begins
};

// The document that begins at `at` ends at a blank line behind 64 KB, else a line end, else before a space, else between two
// characters, else with the text. What lies further is not looked through: that would cost the square of a text without such.
DocumentCut cut_document(std::string_view text, size_t at) {
  constexpr size_t kDocumentBytes = 65536;
  const std::string_view near = text.substr(at, 3 * kDocumentBytes);
  const DocumentCut whole = {text.size(), text.size()};
  if (near.size() <= 2 * kDocumentBytes) return whole;
  const size_t blank = near.substr(0, 2 * kDocumentBytes + 2).find("\n\n", kDocumentBytes);
  if (blank != kNotFound) return {at + blank, at + blank + 1};
  const size_t newline = near.find('\n', kDocumentBytes);
  if (newline != kNotFound) return {at + newline, at + newline + 1};
  if (at + near.size() == text.size()) return whole;
  const size_t space = near.find(' ', kDocumentBytes);
  const size_t end = space != kNotFound ? at + space : character_begin(text, at + near.size());
  return {end, end};
}

void add_text_file(const fs::path& path, DocumentSink& sink) {
  const std::string text = read_file(path);
  const std::optional<size_t> bad = find_invalid_utf8(text);
  SWITCHYARD_CHECK(!bad, DataError, path.string(), " is not UTF-8 at byte ", bad.value_or(0),
                   "; convert the file (iconv -f latin1 -t utf-8) or take it out");
  for (size_t at = 0; at < text.size() && !sink.full();) {
    const DocumentCut cut = cut_document(text, at);
    sink.add(std::string_view(text).substr(at, cut.end - at));
    at = cut.next;
  }
}

}  // namespace

DomainText read_text_folder(const fs::path& folder, int64_t cap_bytes) {
  std::vector<fs::path> files;
  std::vector<fs::path> way;
  collect_files(folder, way, files);
  DocumentSink sink(cap_bytes);
  for (const fs::path& file : files) {
    if (sink.full()) break;
    add_text_file(file, sink);
  }
  return sink.take();
}

std::vector<SourceDomain> load_preset(const BuildOptions& options, PackageFetcher& fetcher, Progress& progress) {
  const Preset& preset = find_preset(options.preset);
  std::set<std::string> patterns;
  for (const std::string_view domain : preset.domains) {
    const Recipe& recipe = find_recipe(domain);
    patterns.insert(recipe.packages.begin(), recipe.packages.end());
  }
  PhaseCounter downloads(progress, "download", static_cast<int64_t>(patterns.size()));
  const PackagePaths paths = fetcher.fetch({patterns.begin(), patterns.end()});
  downloads.add(static_cast<int64_t>(patterns.size()));
  const auto count = static_cast<int64_t>(preset.domains.size());
  std::vector<SourceDomain> domains(preset.domains.size());
  PhaseCounter extracted(progress, "extract", count);
  run_in_parallel(count, options.num_threads, [&](int64_t index) {
    const auto at = static_cast<size_t>(index);
    domains[at] = extract_domain(find_recipe(preset.domains[at]), paths, options.cap_bytes.value_or(kPackageTextCap));
    extracted.add(1);
  });
  return domains;
}

std::vector<SourceDomain> load_folder(const BuildOptions& options, Progress& progress) {
  const std::vector<fs::path> folders =
      visible_entries(options.from, [](fs::file_type type) { return type == fs::file_type::directory; });
  SWITCHYARD_CHECK(!folders.empty(), DataError, options.from.string(),
                   " holds no folder; expected one folder of text files per domain");
  for (const fs::path& folder : folders) static_cast<void>(real_folder(folder, {fs::canonical(options.from)}));
  const auto count = static_cast<int64_t>(folders.size());
  std::vector<SourceDomain> domains(folders.size());
  PhaseCounter read(progress, "extract", count);
  run_in_parallel(count, options.num_threads, [&](int64_t index) {
    SourceDomain& domain = domains[static_cast<size_t>(index)];
    const fs::path& folder = folders[static_cast<size_t>(index)];
    check_domain_name(folder);
    domain.record.name = folder.filename().string();
    domain.text = read_text_folder(folder, options.cap_bytes.value_or(0));
    SWITCHYARD_CHECK(!domain.text.documents.empty(), DataError, "domain '", domain.record.name, "' is empty: ", folder.string(),
                     " holds no text (or its first document is over the cap)");
    finish_record(domain);
    read.add(1);
  });
  return domains;
}

}  // namespace switchyard
