#pragma once
// One process at a time works on a folder.

#include <filesystem>
#include <memory>
#include <string>

#include "switchyard/core/descriptor.hpp"

namespace switchyard {

/// Held until the object ends, or the process, however it ends. Children of the process do not hold it.
class FolderLock {
 public:
  static constexpr const char* kFileName = ".lock";  // in the folder. It stays: removing it could let two processes in

  /// @param name  of the folder in messages: "the run folder runs/a"
  /// @return null where another process holds it
  /// @throws DataError where the folder cannot be written to or locked
  [[nodiscard]] static std::unique_ptr<FolderLock> take(const std::filesystem::path& folder, const std::string& name);
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  /// Whether the folder still has its name: nobody has moved, removed or replaced it.
  [[nodiscard]] bool folder_is_in_place() const { return is_open_at(folder_.get(), path_); }
  /// Whether its file is there; where somebody removed it, another process can take a lock of its own.
  [[nodiscard]] bool file_is_in_place() const { return is_open_at(file_.get(), path_ / kFileName); }

 private:
  FolderLock(std::filesystem::path path, const std::string& name);

  std::filesystem::path path_;
  Descriptor folder_;
  Descriptor file_;
};

}  // namespace switchyard
