#include "switchyard/data/package_fetch.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <system_error>

#include "switchyard/core/child_process.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// The number that '*' stands for, 0 without one; nothing if the name does not fit.
std::optional<int64_t> match_name(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == kNotFound) return pattern == name ? std::optional<int64_t>(0) : std::nullopt;
  const std::string_view before = pattern.substr(0, star);
  const std::string_view after = pattern.substr(star + 1);
  constexpr size_t kMostDigits = 9;
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) return std::nullopt;
  const std::string digits(name.substr(before.size(), name.size() - before.size() - after.size()));
  const bool number = std::all_of(digits.begin(), digits.end(), [](unsigned char letter) { return std::isdigit(letter) != 0; });
  return number && digits.size() <= kMostDigits ? std::optional<int64_t>(std::stoll(digits)) : std::nullopt;
}

void create_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot make the package cache ", folder.string(), ": ", error.message());
}

// apt-get writes into its working folder under the final names, and an interrupted one leaves half a file: so it works in a
// folder beside the cache, and whole files are renamed into it.
class DownloadFolder {
 public:
  explicit DownloadFolder(const fs::path& cache) : path_(cache / join_text(".part-", ::getpid())) { create_folder(path_); }
  ~DownloadFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  DownloadFolder(const DownloadFolder&) = delete;
  DownloadFolder& operator=(const DownloadFolder&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }
  void move_files_to(const fs::path& cache) const {
    for (const fs::directory_entry& entry : fs::directory_iterator(path_)) {
      if (entry.path().extension() == ".deb") fs::rename(entry.path(), cache / entry.path().filename());
    }
  }

 private:
  fs::path path_;
};

// Last lines of what a command said: apt's first lines are often harmless warnings.
std::string tail_of(const ChildResult& result) {
  constexpr size_t kMost = 1500;
  const std::string text = result.errors + result.output;
  return text.size() <= kMost ? text : "..." + text.substr(text.size() - kMost);
}

// Package names that fit a pattern with '*', the highest number last; the plain name without one.
std::optional<std::string> resolve_pattern(const std::string& pattern, const fs::path& folder) {
  const size_t star = pattern.find('*');
  if (star == kNotFound) return pattern;
  const ChildResult result = run_child({.arguments = {"apt-cache", "pkgnames", pattern.substr(0, star)}, .folder = folder});
  std::optional<std::string> best;
  int64_t highest = -1;
  for (size_t at = 0; at < result.output.size();) {
    const size_t end = std::min(result.output.find('\n', at), result.output.size());
    const std::string name = result.output.substr(at, end - at);
    const std::optional<int64_t> number = match_name(pattern, name);
    if (number && *number > highest) {
      highest = *number;
      best = name;
    }
    at = end + 1;
  }
  return best;
}

// One attempt. Returns what went wrong, or an empty text.
std::string download(const std::vector<std::string>& patterns, const fs::path& folder) {
  // The sandbox user that apt switches to as root cannot write into the folder; apt then warns and does without.
  std::vector<std::string> command{"apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"};
  for (const std::string& pattern : patterns) {
    const std::optional<std::string> name = resolve_pattern(pattern, folder);
    if (!name) return "apt knows no package named " + pattern;
    command.push_back(*name);
  }
  const ChildResult result = run_child({.arguments = command, .folder = folder});
  return result.exit_code == 0 ? "" : tail_of(result);
}

[[noreturn]] void throw_not_fetched(const std::vector<std::string>& patterns, const std::string& problem,
                                    const ChildResult& update) {
  const std::string updated = update.exit_code == 0 ? "" : join_text(" ('apt-get update' failed too: ", tail_of(update), ")");
  throw DataError(join_text("cannot download ", comma_list(patterns), ": ", problem, updated,
                            "\nCheck the network, run 'apt-get update' as root, or build from your own text with --from DIR."));
}

}  // namespace

fs::path find_package_file(const fs::path& folder, std::string_view pattern) {
  struct Candidate {
    int64_t number;
    fs::file_time_type time;
    fs::path path;
  };
  std::vector<Candidate> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string file = entry.path().filename().string();
    const size_t name_end = file.find('_');
    if (entry.path().extension() != ".deb" || name_end == kNotFound) continue;
    const std::optional<int64_t> number = match_name(pattern, std::string_view(file).substr(0, name_end));
    if (number) found.push_back({*number, entry.last_write_time(), entry.path()});
  }
  const auto order = [](const Candidate& left, const Candidate& right) {
    return std::tie(left.number, left.time, left.path) < std::tie(right.number, right.time, right.path);
  };
  return found.empty() ? fs::path() : std::max_element(found.begin(), found.end(), order)->path;
}

PackagePaths FolderFetcher::fetch(const std::vector<std::string>& patterns) {
  PackagePaths paths;
  std::vector<std::string> missing;
  for (const std::string& pattern : patterns) {
    paths[pattern] = find_package_file(folder_, pattern);
    if (paths[pattern].empty()) missing.push_back(pattern);
  }
  SWITCHYARD_CHECK(missing.empty(), DataError, "no package file for ", comma_list(missing), " in ", folder_.string(),
                   "; expected <name>_<version>_<architecture>.deb");
  return paths;
}

PackagePaths AptFetcher::fetch(const std::vector<std::string>& patterns) {
  create_folder(cache_);
  std::vector<std::string> missing;
  for (const std::string& pattern : patterns) {
    if (find_package_file(cache_, pattern).empty()) missing.push_back(pattern);
  }
  if (!missing.empty()) {
    const DownloadFolder folder(cache_);
    std::string problem = download(missing, folder.path());
    if (!problem.empty()) {
      const ChildResult update = run_child({.arguments = {"apt-get", "-qq", "update"}, .folder = folder.path()});
      if (update.exit_code == 0) problem = download(missing, folder.path());
      if (!problem.empty()) throw_not_fetched(missing, problem, update);
    }
    folder.move_files_to(cache_);
  }
  return FolderFetcher(cache_).fetch(patterns);
}

fs::path default_package_cache() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache != '\0') return fs::path(cache) / "switchyard" / "packages";
  const char* home = std::getenv("HOME");
  SWITCHYARD_CHECK(home != nullptr && *home != '\0', DataError,
                   "neither XDG_CACHE_HOME nor HOME is set, so there is no place to keep packages; give a cache folder");
  return fs::path(home) / ".cache" / "switchyard" / "packages";
}

}  // namespace switchyard
