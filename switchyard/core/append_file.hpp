#pragma once
// A file that grows by whole records.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "switchyard/core/descriptor.hpp"

namespace switchyard {

/// Holds no bytes back: a record that was not written whole is cut off again, and nothing of it is written later. One writer.
class AppendFile {
 public:
  /// Opens the file, or makes it; its folder must exist. @throws DataError naming the file and the reason
  explicit AppendFile(std::filesystem::path path);

  /// @return 0, or the errno of the failure (disk full); the file then ends as before
  [[nodiscard]] int append(std::string_view record);
  /// Returns when all of it is on the disk, with the name. @throws DataError
  void sync();
  /// Whether its name still is that of this file: nobody has moved, removed or replaced it.
  [[nodiscard]] bool is_in_place() const { return is_open_at(file_.get(), path_); }

 private:
  [[nodiscard]] int cut_torn();

  std::filesystem::path path_;
  Descriptor file_;
  std::optional<int64_t> torn_at_;  // the end of the last whole record, where what follows could not be cut off
  bool is_named_on_disk_ = false;
};

}  // namespace switchyard
