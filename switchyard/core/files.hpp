#pragma once
// Files that are either whole or not there.

#include <filesystem>
#include <functional>
#include <ostream>
#include <string>
#include <string_view>

namespace switchyard {

/// Writes aside in the same folder, syncs, renames. On any failure (disk full, no right) the final name is untouched, the
/// part file is removed, and DataError names the file and the reason. The folder must exist; a symbolic link is followed;
/// anything that is not a regular file (/dev/null) is refused. The stream is binary and knows tellp() but cannot seek.
void write_file_atomically(const std::filesystem::path& path, const std::function<void(std::ostream&)>& write);
void write_file_atomically(const std::filesystem::path& path, std::string_view content);

/// Whether a path has the name of what is written aside: with a killed process it stays so.
[[nodiscard]] bool is_part(const std::filesystem::path& path);

/// A folder built aside and renamed into place by commit(); removed by the destructor otherwise.
class StagedFolder {
 public:
  /// Creates missing parents. The staging folder is `.<name>.part-<pid>` beside the target; only one at a time per process
  /// and target.
  /// @throws UsageError if `target` exists already, DataError if it cannot be made
  explicit StagedFolder(std::filesystem::path target);
  ~StagedFolder();
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;

  /// Where the content lies: the staging folder, after commit() the target.
  [[nodiscard]] const std::filesystem::path& path() const { return staging_; }
  /// Syncs every file and folder inside, then renames. Once only.
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path staging_;
};

/// Whether something is there, and whether a folder is; a link is followed.
/// @throws DataError "cannot look at PATH: Permission denied" where that cannot be told: what cannot be seen is not absent
[[nodiscard]] bool path_exists(const std::filesystem::path& path);
[[nodiscard]] bool folder_exists(const std::filesystem::path& path);

/// Whole file as bytes. Throws DataError that names it.
[[nodiscard]] std::string read_file(const std::filesystem::path& path);

/// The last name of a path: "mix8" of "data/mix8", of "data/mix8/" and, in that folder, of "."; empty if it has none.
[[nodiscard]] std::string folder_name(const std::filesystem::path& path);

/// SHA-256 in lower-case hex.
[[nodiscard]] std::string sha256_hex(std::string_view bytes);
[[nodiscard]] std::string sha256_file(const std::filesystem::path& path);

}  // namespace switchyard
