#pragma once
// One process at a time works on a folder.

#include <filesystem>
#include <memory>
#include <string>

namespace switchyard {

/// Held until the object ends, or the process, however it ends. Children of the process do not hold it.
class FolderLock {
 public:
  static constexpr const char* kFileName = ".lock";  // in the folder. It stays: removing it could let two processes in

  /// @param name  of the folder in messages: "the run folder runs/a"
  /// @return null where another process holds it
  /// @throws DataError where the folder cannot be written to or locked
  [[nodiscard]] static std::unique_ptr<FolderLock> take(const std::filesystem::path& folder, const std::string& name);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  explicit FolderLock(int descriptor) : descriptor_(descriptor) {}

  int descriptor_;
};

}  // namespace switchyard
