#include "switchyard/data/shard.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "shards are mapped as they lie on disk, little-endian");

constexpr std::array<char, 8> kMagic{'S', 'W', 'Y', 'T', 'O', 'K', 'E', 'N'};
constexpr int64_t kLargestNarrowVocabulary = 1 << 16;

struct Header {
  std::array<char, 8> magic = kMagic;
  uint32_t version = static_cast<uint32_t>(kShardVersion);
  uint32_t bytes_per_token = 0;
  uint64_t vocab_size = 0;
  uint64_t documents = 0;
  uint64_t tokens = 0;
  uint32_t offsets_crc = 0;
  uint32_t tokens_crc = 0;
  std::array<uint32_t, 3> zero{};
  uint32_t header_crc = 0;
};
static_assert(sizeof(Header) == 64);

uint32_t crc_of(const void* bytes, size_t size) {
  return static_cast<uint32_t>(crc32_z(0, static_cast<const unsigned char*>(bytes), size));
}

uint32_t header_crc(const Header& header) { return crc_of(&header, offsetof(Header, header_crc)); }

void check_content(const fs::path& path, std::span<const int32_t> tokens, std::span<const uint64_t> offsets,
                   int64_t vocab_size) {
  SWITCHYARD_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == tokens.size(), ShapeError, "cannot write ",
                   path.string(), ": document offsets must begin with 0 and end with the number of tokens, ", tokens.size());
  SWITCHYARD_CHECK(std::is_sorted(offsets.begin(), offsets.end()), ShapeError, "cannot write ", path.string(),
                   ": document offsets fall");
  const auto outside =
      std::find_if(tokens.begin(), tokens.end(), [&](int32_t token) { return token < 0 || token >= vocab_size; });
  SWITCHYARD_CHECK(outside == tokens.end(), ShapeError, "cannot write ", path.string(), ": token ", outside - tokens.begin(),
                   " is ", outside == tokens.end() ? 0 : *outside, "; expected [0, ", vocab_size, ")");
}

template <typename Stored>
void write_bytes(std::ostream& out, std::span<Stored> values) {
  out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
}

}  // namespace

void write_shard(const fs::path& path, std::span<const int32_t> tokens, std::span<const uint64_t> offsets, int64_t vocab_size) {
  check_content(path, tokens, offsets, vocab_size);
  const bool narrow = vocab_size <= kLargestNarrowVocabulary;
  std::vector<uint16_t> small;
  if (narrow) {
    small.reserve(tokens.size());
    for (const int32_t token : tokens) small.push_back(static_cast<uint16_t>(token));
  }
  Header header;
  header.bytes_per_token = narrow ? 2 : 4;
  header.vocab_size = static_cast<uint64_t>(vocab_size);
  header.documents = offsets.size() - 1;
  header.tokens = tokens.size();
  header.offsets_crc = crc_of(offsets.data(), offsets.size_bytes());
  header.tokens_crc = narrow ? crc_of(small.data(), small.size() * 2) : crc_of(tokens.data(), tokens.size_bytes());
  header.header_crc = header_crc(header);
  write_file_atomically(path, [&](std::ostream& out) {
    out.write(reinterpret_cast<const char*>(&header), sizeof header);
    write_bytes(out, offsets);
    if (narrow) {
      write_bytes(out, std::span<const uint16_t>(small));
    } else {
      write_bytes(out, tokens);
    }
  });
}

struct TokenShard::Impl {
  fs::path path;
  void* map = MAP_FAILED;
  size_t size = 0;
  Header header;
  const uint64_t* offsets = nullptr;
  const unsigned char* tokens = nullptr;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (map != MAP_FAILED) ::munmap(map, size);
  }

  template <typename... Parts>
  [[noreturn]] void reject(const Parts&... parts) const {
    throw DataError(join_text("token shard ", path.string(), ": ", parts..., "; build the data set again"));
  }

  void open() {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    SWITCHYARD_CHECK(file >= 0, DataError, "cannot open token shard ", path.string(), ": ",
                     std::generic_category().message(errno));
    struct stat status {};
    const bool known = ::fstat(file, &status) == 0;
    size = known ? static_cast<size_t>(status.st_size) : 0;
    if (size >= sizeof(Header)) map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
    const int reason = errno;
    ::close(file);
    if (size < sizeof(Header)) reject("has ", size, " bytes, less than a header");
    SWITCHYARD_CHECK(map != MAP_FAILED, DataError, "cannot map token shard ", path.string(), ": ",
                     std::generic_category().message(reason));
  }

  void read_header() {
    std::memcpy(&header, map, sizeof header);
    if (header.magic != kMagic) reject("does not begin with SWYTOKEN, so it is no token shard");
    if (header.version != kShardVersion) reject("has format version ", header.version, ", expected ", kShardVersion);
    if (header.header_crc != header_crc(header)) reject("the header is damaged (CRC)");
    const uint64_t width = header.bytes_per_token;
    if (width != 2 && width != 4) reject("has ", width, " bytes per token, expected 2 or 4");
    // Divided rather than multiplied, so that a forged count cannot overflow.
    const uint64_t rest = size - sizeof(Header);
    const bool offsets_fit = header.documents < rest / 8;
    if (!offsets_fit || header.tokens != (rest - (header.documents + 1) * 8) / width ||
        (header.documents + 1) * 8 + header.tokens * width != rest) {
      reject("has ", size, " bytes, which does not fit its ", header.documents, " documents and ", header.tokens,
             " tokens: it was cut off or appended to");
    }
    const auto* bytes = static_cast<const unsigned char*>(map);
    offsets = reinterpret_cast<const uint64_t*>(bytes + sizeof(Header));
    tokens = bytes + sizeof(Header) + (header.documents + 1) * 8;
  }

  void check_offsets() const {
    const size_t count = header.documents + 1;
    if (crc_of(offsets, count * 8) != header.offsets_crc) reject("the document offsets are damaged (CRC)");
    if (offsets[0] != 0 || offsets[count - 1] != header.tokens || !std::is_sorted(offsets, offsets + count)) {
      reject("the document offsets fall or do not end at the last token");
    }
  }

  void check_tokens() const {
    if (crc_of(tokens, header.tokens * header.bytes_per_token) != header.tokens_crc) reject("the tokens are damaged (CRC)");
  }

  template <typename Out>
  void copy(int64_t first, std::span<Out> out) const {
    const auto total = static_cast<int64_t>(header.tokens);
    const auto count = static_cast<int64_t>(out.size());
    SWITCHYARD_CHECK(first >= 0 && count <= total - first, ShapeError, "tokens [", first, ", ", first + count, ") of ",
                     path.string(), " were asked for; it holds ", total);
    const auto start = static_cast<size_t>(first);
    if (header.bytes_per_token == 2) {
      const auto* from = reinterpret_cast<const uint16_t*>(tokens) + start;
      std::copy(from, from + out.size(), out.begin());
    } else {
      // Written as int32 below vocab_size, so the sign bit is clear.
      const auto* from = reinterpret_cast<const int32_t*>(tokens) + start;
      std::copy(from, from + out.size(), out.begin());
    }
  }
};

TokenShard::TokenShard(const fs::path& path, ShardCheck check) : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->open();
  impl_->read_header();
  impl_->check_offsets();
  if (check == ShardCheck::Tokens) impl_->check_tokens();
}
TokenShard::~TokenShard() = default;
TokenShard::TokenShard(TokenShard&&) noexcept = default;
TokenShard& TokenShard::operator=(TokenShard&&) noexcept = default;

int64_t TokenShard::num_tokens() const { return static_cast<int64_t>(impl_->header.tokens); }
int64_t TokenShard::num_documents() const { return static_cast<int64_t>(impl_->header.documents); }
int64_t TokenShard::vocab_size() const { return static_cast<int64_t>(impl_->header.vocab_size); }
int64_t TokenShard::bytes_per_token() const { return impl_->header.bytes_per_token; }

int64_t TokenShard::document_start(int64_t document) const {
  SWITCHYARD_CHECK(document >= 0 && document <= num_documents(), ShapeError, "document ", document, " of ",
                   impl_->path.string(), " was asked for; it holds ", num_documents());
  return static_cast<int64_t>(impl_->offsets[document]);
}

int64_t TokenShard::document_of(int64_t token) const {
  SWITCHYARD_CHECK(token >= 0 && token < num_tokens(), ShapeError, "token ", token, " of ", impl_->path.string(),
                   " was asked for; it holds ", num_tokens());
  const uint64_t* end = impl_->offsets + num_documents() + 1;
  return std::upper_bound(impl_->offsets, end, static_cast<uint64_t>(token)) - impl_->offsets - 1;
}

void TokenShard::copy_tokens(int64_t first, std::span<int64_t> out) const { impl_->copy(first, out); }
void TokenShard::copy_tokens(int64_t first, std::span<int32_t> out) const { impl_->copy(first, out); }

}  // namespace switchyard
