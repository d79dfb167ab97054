#pragma once
// Files by their descriptors, for those that write them: a descriptor keeps the reason of a failure, which std::ofstream loses, and
// holds no bytes that are written later.

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace switchyard {

/// An open file. The destructor closes without checking; a file that was written is closed by finish().
class Descriptor {
 public:
  /// @param handle  negative where it could not be opened
  explicit Descriptor(int handle) : handle_(handle) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  [[nodiscard]] int get() const { return handle_; }
  /// Syncs and closes: some file systems report a full disk only here. @return 0, or the errno of the failure
  [[nodiscard]] int finish();

 private:
  int handle_;
};

/// Writes at the end, or where the file stands. @return 0, or the errno of the failure. `written` grows by the bytes that went out
[[nodiscard]] int write_all(int handle, std::string_view bytes, int64_t& written);

/// Whether `path` is the open file and not another one that took its place; true where that cannot be told.
[[nodiscard]] bool is_open_at(int handle, const std::filesystem::path& path);

/// Syncs a file or a folder that can be opened. @throws DataError
void sync_path(const std::filesystem::path& path);

/// The folder that a path lies in; "." of a lone name.
[[nodiscard]] std::filesystem::path parent_of(const std::filesystem::path& path);

/// "cannot write runs/a/log.jsonl: No space left on device". @param reason  an errno
[[noreturn]] void throw_failed(std::string_view action, const std::filesystem::path& path, int reason);

}  // namespace switchyard
