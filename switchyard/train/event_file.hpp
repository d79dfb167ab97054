#pragma once
// TensorBoard event files: scalars only. Format: TFRecord frames (length, masked CRC-32C of it, data, masked CRC-32C of it)
// around protobuf messages tensorflow.Event; see docs/file-formats.md.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "switchyard/core/append_file.hpp"

namespace switchyard {

/// CRC-32C (Castagnoli, reflected, as in RFC 3720 B.4) of `bytes`.
[[nodiscard]] uint32_t crc32c(std::string_view bytes);

using NamedScalar = std::pair<std::string, double>;

/// Appends to its own new file; an event that could not be written whole is not there.
class EventFileWriter {
 public:
  /// Creates `events.out.tfevents.<milliseconds>.<process>` in `folder`. TensorBoard forgets what other files of the folder hold
  /// at steps >= first_step, so that a resumed run shows each step once.
  /// @throws DataError when the file cannot be written
  EventFileWriter(const std::filesystem::path& folder, int64_t first_step);
  void add(int64_t step, std::span<const NamedScalar> scalars);

 private:
  void write_record(std::string_view event);
  std::filesystem::path path_;
  AppendFile file_;
};

}  // namespace switchyard
