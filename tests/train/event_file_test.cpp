// The frames of TensorBoard's event files, byte by byte; tests/python/test_event_file.py reads them with tensorboard itself.

#include "switchyard/train/event_file.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/file_size_limit.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

TEST(Crc32c, KnownValues) {
  // RFC 3720 B.4, and the check value of the CRC catalogue.
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  EXPECT_EQ(crc32c(""), 0U);
}

template <typename T>
T number_at(const std::string& bytes, size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

uint32_t unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8U;
  return rotated >> 17 | rotated << 15;
}

/// The payloads of a file of frames; checks both checksums of each.
std::vector<std::string> read_frames(const std::string& bytes) {
  std::vector<std::string> frames;
  size_t offset = 0;
  while (offset < bytes.size()) {
    const auto length = number_at<uint64_t>(bytes, offset);
    EXPECT_EQ(unmask(number_at<uint32_t>(bytes, offset + 8)), crc32c(bytes.substr(offset, 8)));
    frames.push_back(bytes.substr(offset + 12, length));
    EXPECT_EQ(unmask(number_at<uint32_t>(bytes, offset + 12 + length)), crc32c(frames.back()));
    offset += 16 + length;
  }
  return frames;
}

std::filesystem::path only_file(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry.path());
  EXPECT_EQ(files.size(), 1U);
  return files.at(0);
}

TEST(EventFile, HoldsVersionSessionAndScalars) {
  const test::ScratchFolder folder;
  EventFileWriter writer(folder.path(), 7);
  writer.add(300, std::array<NamedScalar, 2>{NamedScalar{"loss", 1.5}, NamedScalar{"lbl", 0.25}});
  const auto frames = read_frames(read_file(only_file(folder.path())));
  ASSERT_EQ(frames.size(), 3U);
  EXPECT_NE(frames[0].find("brain.Event:2"), std::string::npos);
  // wall_time (9 bytes), step 7 (10 07), session_log of 2 bytes (3a 02): status (08) START (01).
  EXPECT_EQ(frames[1].substr(9), std::string("\x10\x07\x3a\x02\x08\x01", 6));
  // step 300 (10 ac 02), summary (2a) with two values (0a): tag (0a), simple_value (15) as fp32.
  const std::string expected =
      std::string("\x10\xac\x02\x2a\x19") + std::string("\x0a\x0b\x0a\x04loss\x15\x00\x00\xc0\x3f", 13) +
      std::string("\x0a\x0a\x0a\x03lbl\x15\x00\x00\x80\x3e", 12);
  EXPECT_EQ(frames[2].substr(9), expected);
}

// Space is free again when the writer ends: it must not write then what it could not write before.
TEST(EventFile, AFullDiskLeavesWholeFrames) {
  const test::ScratchFolder folder;
  std::optional<EventFileWriter> writer(std::in_place, folder.path(), 1);
  const std::filesystem::path path = only_file(folder.path());
  const std::string whole = read_file(path);
  {
    const test::FileSizeLimit disk(whole.size() + 10);
    EXPECT_THROW(writer->add(1, std::array<NamedScalar, 1>{NamedScalar{"loss", 1.5}}), DataError);
  }
  EXPECT_EQ(read_file(path), whole);
  writer.reset();
  EXPECT_EQ(read_file(path), whole);
}

TEST(EventFile, NamesAFolderThatIsMissing) {
  const test::ScratchFolder folder;
  EXPECT_THROW(EventFileWriter(folder.path() / "missing", 0), DataError);
}

}  // namespace
}  // namespace switchyard
