#pragma once
// Where package files come from.

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Package pattern, as a recipe names it, to its .deb on this machine.
using PackagePaths = std::map<std::string, std::filesystem::path>;

class PackageFetcher {
 public:
  virtual ~PackageFetcher() = default;
  /// @param patterns  package names; one '*' may stand for a run of digits ("libpython3.*-stdlib": the highest is taken)
  /// @return a file for each pattern
  /// @throws DataError that names the packages that are missing and what to do
  [[nodiscard]] virtual PackagePaths fetch(const std::vector<std::string>& patterns) = 0;
};

/// Among package files of a folder (`<name>_<version>_<architecture>.deb`), the one for a pattern; empty if there is none.
/// Of several, the one with the highest number for '*', then the one that was written last.
[[nodiscard]] std::filesystem::path find_package_file(const std::filesystem::path& folder, std::string_view pattern);

/// Takes packages from a folder and downloads nothing.
class FolderFetcher : public PackageFetcher {
 public:
  explicit FolderFetcher(std::filesystem::path folder) : folder_(std::move(folder)) {}
  PackagePaths fetch(const std::vector<std::string>& patterns) override;

 private:
  std::filesystem::path folder_;
};

/// Runs `apt-get download` for what is not yet in the cache folder. No root needed; nothing is installed. When apt does not
/// find a package, `apt-get update` is tried once (that does need root).
class AptFetcher : public PackageFetcher {
 public:
  explicit AptFetcher(std::filesystem::path cache) : cache_(std::move(cache)) {}
  PackagePaths fetch(const std::vector<std::string>& patterns) override;

 private:
  std::filesystem::path cache_;
};

/// $XDG_CACHE_HOME/switchyard/packages, else ~/.cache/switchyard/packages.
[[nodiscard]] std::filesystem::path default_package_cache();

}  // namespace switchyard
