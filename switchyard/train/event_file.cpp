#include "switchyard/train/event_file.hpp"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <system_error>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Field numbers of tensorflow.Event, Summary, Summary.Value and SessionLog.
constexpr uint64_t kEventWallTime = 1;
constexpr uint64_t kEventStep = 2;
constexpr uint64_t kEventFileVersion = 3;
constexpr uint64_t kEventSummary = 5;
constexpr uint64_t kEventSessionLog = 7;
constexpr uint64_t kSummaryValue = 1;
constexpr uint64_t kValueTag = 1;
constexpr uint64_t kValueSimple = 2;
constexpr uint64_t kSessionStatus = 1;
constexpr uint64_t kSessionStart = 1;

constexpr uint64_t kWireVarint = 0;
constexpr uint64_t kWire64 = 1;
constexpr uint64_t kWireBytes = 2;
constexpr uint64_t kWire32 = 5;

template <typename T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
}

void append_varint(std::string& out, uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>((value & 0x7f) | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, uint64_t field, uint64_t wire) { append_varint(out, field << 3 | wire); }

void append_bytes(std::string& out, uint64_t field, std::string_view bytes) {
  append_key(out, field, kWireBytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

/// An Event with its time and step, to which the content is appended.
std::string event_head(int64_t step) {
  const double seconds = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  std::string event;
  append_key(event, kEventWallTime, kWire64);
  append_little_endian(event, std::bit_cast<uint64_t>(seconds));
  append_key(event, kEventStep, kWireVarint);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

constexpr std::array<uint32_t, 256> make_crc_table() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // Castagnoli, bits reversed
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
    table[byte] = value;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

/// TFRecord masks its checksums because a checksum of data that holds checksums is weak.
uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xa282ead8U;
}

/// TensorBoard reads the files of a folder in the order of their names, so the time comes first.
std::string new_name() {
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::system_clock::now().time_since_epoch()).count();
  return join_text("events.out.tfevents.", milliseconds, ".", getpid());
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0U;
  for (const char byte : bytes) crc = kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

EventFileWriter::EventFileWriter(const std::filesystem::path& folder, int64_t first_step)
    : path_(folder / new_name()), file_(path_) {
  std::string version = event_head(0);
  append_bytes(version, kEventFileVersion, "brain.Event:2");
  write_record(version);
  std::string session;
  append_key(session, kSessionStatus, kWireVarint);
  append_varint(session, kSessionStart);
  std::string start = event_head(first_step);
  append_bytes(start, kEventSessionLog, session);
  write_record(start);
}

void EventFileWriter::add(int64_t step, std::span<const NamedScalar> scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    append_bytes(value, kValueTag, tag);
    append_key(value, kValueSimple, kWire32);
    append_little_endian(value, std::bit_cast<uint32_t>(static_cast<float>(number)));
    append_bytes(summary, kSummaryValue, value);
  }
  std::string event = event_head(step);
  append_bytes(event, kEventSummary, summary);
  write_record(event);
}

void EventFileWriter::write_record(std::string_view event) {
  std::string length;
  append_little_endian(length, static_cast<uint64_t>(event.size()));
  std::string record = length;
  append_little_endian(record, masked_crc(length));
  record.append(event);
  append_little_endian(record, masked_crc(event));
  const int reason = file_.append(record);
  SWITCHYARD_CHECK(reason == 0, DataError, "cannot write ", path_.string(), ": ", std::generic_category().message(reason),
                   "; the disk may be full: free space and resume the run");
}

}  // namespace switchyard
