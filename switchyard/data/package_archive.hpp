#pragma once
// Debian packages read as archives: nothing is unpacked to disk and nothing is installed.

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

struct PackageFile {
  std::string path;  // "usr/share/man/de/man1/ls.1.gz"
  std::string bytes;
};

using FileFilter = std::function<bool(std::string_view path)>;

/// The regular files of a .deb that the filter wants, sorted by path (bytewise). Hard links are files, symbolic links are not.
/// @throws DataError naming the package file when it cannot be read
[[nodiscard]] std::vector<PackageFile> read_package(const std::filesystem::path& deb, const FileFilter& wanted);

struct PackageControl {
  std::string name;
  std::string version;
};

/// Name and version from the package's control file. @throws DataError
[[nodiscard]] PackageControl read_package_control(const std::filesystem::path& deb);

}  // namespace switchyard
