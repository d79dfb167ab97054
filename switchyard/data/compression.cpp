#include "switchyard/data/compression.hpp"

#include <zlib.h>

#include <array>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr std::string_view kGzipMagic = "\x1f\x8b";

// An inflating stream that is ended whatever happens.
class Inflater {
 public:
  Inflater() {
    // 15 + 32: largest window, zlib or gzip told by the header.
    SWITCHYARD_CHECK(inflateInit2(&stream_, 15 + 32) == Z_OK, Error, "zlib could not be started");
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // Inflates one stream from the front of `input`; returns how many bytes of it were used.
  size_t run(std::string_view input, std::string& out) {
    // zlib's own type of input pointer is not const.
    stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(input.data()));
    stream_.avail_in = static_cast<uInt>(input.size());
    std::array<char, size_t{1} << 16> buffer;
    int result = Z_OK;
    while (result != Z_STREAM_END) {
      stream_.next_out = reinterpret_cast<Bytef*>(buffer.data());
      stream_.avail_out = static_cast<uInt>(buffer.size());
      result = inflate(&stream_, Z_NO_FLUSH);
      const bool good = result == Z_OK || result == Z_STREAM_END;
      SWITCHYARD_CHECK(good, DataError, "compressed data is ", result == Z_BUF_ERROR ? "cut off" : "damaged");
      out.append(buffer.data(), buffer.size() - stream_.avail_out);
    }
    return input.size() - stream_.avail_in;
  }

 private:
  z_stream stream_{};
};

}  // namespace

std::string inflate_bytes(std::string_view compressed) {
  std::string out;
  do {
    compressed.remove_prefix(Inflater().run(compressed, out));
  } while (compressed.starts_with(kGzipMagic));
  return out;
}

std::string gunzip_if_gzip(std::string bytes) { return bytes.starts_with(kGzipMagic) ? inflate_bytes(bytes) : std::move(bytes); }

}  // namespace switchyard
