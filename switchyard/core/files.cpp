#include "switchyard/core/files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <streambuf>
#include <system_error>
#include <utility>
#include <vector>

#include "switchyard/core/descriptor.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBufferBytes = size_t{1} << 18;

// Keeps the reason of the first failed write, which std::ofstream loses.
class DescriptorBuffer : public std::streambuf {
 public:
  explicit DescriptorBuffer(int handle) : handle_(handle), buffer_(kBufferBytes) { reset(); }
  [[nodiscard]] int reason() const { return reason_; }

 protected:
  int_type overflow(int_type letter) override {
    if (!drain()) return traits_type::eof();
    if (!traits_type::eq_int_type(letter, traits_type::eof())) sputc(traits_type::to_char_type(letter));
    return traits_type::not_eof(letter);
  }
  std::streamsize xsputn(const char* data, std::streamsize size) override {
    if (size < epptr() - pptr()) return std::streambuf::xsputn(data, size);
    return drain() && put(data, static_cast<size_t>(size)) ? size : 0;
  }
  int sync() override { return drain() ? 0 : -1; }
  // Only tellp() is supported: the file is written front to back.
  pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override {
    if (offset != 0 || from != std::ios_base::cur) return pos_type(off_type(-1));
    return pos_type(written_ + (pptr() - pbase()));
  }

 private:
  void reset() { setp(buffer_.data(), buffer_.data() + buffer_.size()); }
  bool drain() {
    const bool done = put(pbase(), static_cast<size_t>(pptr() - pbase()));
    reset();
    return done;
  }
  bool put(const char* data, size_t size) {
    if (reason_ == 0) reason_ = write_all(handle_, {data, size}, written_);
    return reason_ == 0;
  }

  int handle_;
  int reason_ = 0;
  off_type written_ = 0;
  std::vector<char> buffer_;
};

constexpr const char* kPart = ".part-";

fs::path part_path(const fs::path& path) {
  return parent_of(path) / join_text(".", path.filename().string(), kPart, ::getpid());
}

// Removes the file unless keep() was called.
class PartFile {
 public:
  explicit PartFile(fs::path path) : path_(std::move(path)) {}
  ~PartFile() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove(path_, ignored);
  }
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;
  void keep() { path_.clear(); }

 private:
  fs::path path_;
};

// A name of this process that no other thread is using; a crashed process may have left one.
std::pair<fs::path, int> open_part_file(const fs::path& path) {
  constexpr int kAttempts = 1000;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    fs::path part = part_path(path);
    if (attempt > 0) part += join_text("-", attempt);
    const int handle = ::open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (handle >= 0) return {part, handle};
    if (errno != EEXIST) throw_failed("write", path, errno);
  }
  throw_failed("write", path, EEXIST);
}

fs::file_status status_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::none) throw_failed("look at", path, error.value());  // else it is there, or it is not
  return status;
}

// Where the bytes go: a link is followed, and a device such as /dev/null is refused, because renaming would replace it.
fs::path resolve_target(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return path;
  SWITCHYARD_CHECK(fs::is_regular_file(status), DataError, "cannot write ", path.string(), ": not a regular file");
  if (!fs::is_symlink(fs::symlink_status(path, error))) return path;
  const fs::path target = fs::canonical(path, error);
  return error ? path : target;
}

template <typename Consume>
void read_in_pieces(const fs::path& path, const Consume& consume) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_failed("read", path, errno);
  std::vector<char> buffer(kBufferBytes);
  while (true) {
    const ssize_t count = ::read(file.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_failed("read", path, errno);
    if (count == 0) return;
    consume(std::string_view(buffer.data(), static_cast<size_t>(count)));
  }
}

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }
  void add(std::string_view bytes) { check(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1); }
  [[nodiscard]] std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest.data(), &size) == 1);
    constexpr std::string_view kDigits = "0123456789abcdef";
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += kDigits[digest[i] >> 4];
      text += kDigits[digest[i] & 15];
    }
    return text;
  }

 private:
  static void check(bool done) { SWITCHYARD_CHECK(done, Error, "SHA-256 failed in OpenSSL"); }
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

bool is_part(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.starts_with(".") && name.find(kPart) != std::string::npos;
}

void write_file_atomically(const fs::path& path, const std::function<void(std::ostream&)>& write) {
  const fs::path target = resolve_target(path);
  auto [part, handle] = open_part_file(target);
  Descriptor file(handle);
  PartFile guard(part);
  DescriptorBuffer buffer(file.get());
  std::ostream out(&buffer);
  write(out);
  out.flush();
  if (buffer.reason() != 0) throw_failed("write", path, buffer.reason());
  SWITCHYARD_CHECK(out.good(), DataError, "cannot write ", path.string(), ": its writer reported a failure");
  if (const int reason = file.finish(); reason != 0) throw_failed("write", path, reason);
  if (::rename(part.c_str(), target.c_str()) != 0) throw_failed("write", path, errno);
  guard.keep();
  sync_path(parent_of(target));
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  write_file_atomically(path, [content](std::ostream& out) {
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
  });
}

StagedFolder::StagedFolder(fs::path target) : target_(std::move(target)) {
  if (!target_.has_filename()) target_ = target_.parent_path();
  SWITCHYARD_CHECK(target_.has_filename(), DataError, "cannot create folder '", target_.string(), "': it has no name");
  std::error_code error;
  SWITCHYARD_CHECK(!fs::exists(fs::symlink_status(target_, error)), UsageError, target_.string(),
                   " exists already; give another folder, or remove it first");
  fs::create_directories(parent_of(target_), error);
  if (error) throw_failed("create folder", parent_of(target_), error.value());
  staging_ = part_path(target_);
  if (fs::create_directory(staging_, error)) return;
  if (error && error != std::errc::file_exists) throw_failed("create folder", target_, error.value());
  // A process that was killed may have left a folder of this name: process numbers repeat, above all in containers.
  fs::remove_all(staging_, error);
  if (error) throw_failed("remove", staging_, error.value());
  if (!fs::create_directory(staging_, error)) throw_failed("create folder", target_, error ? error.value() : EEXIST);
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (staging_ != target_) fs::remove_all(staging_, ignored);
}

void StagedFolder::commit() {
  SWITCHYARD_CHECK(staging_ != target_, StateError, "folder ", target_.string(), " was committed before");
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(staging_)) {
    if (entry.is_symlink()) continue;
    if (entry.is_regular_file() || entry.is_directory()) sync_path(entry.path());
  }
  sync_path(staging_);
  if (::rename(staging_.c_str(), target_.c_str()) != 0) throw_failed("create folder", target_, errno);
  staging_ = target_;
  sync_path(parent_of(target_));
}

bool path_exists(const fs::path& path) { return fs::exists(status_of(path)); }
bool folder_exists(const fs::path& path) { return fs::is_directory(status_of(path)); }

std::string read_file(const fs::path& path) {
  std::string content;
  read_in_pieces(path, [&content](std::string_view piece) { content += piece; });
  return content;
}

std::string folder_name(const fs::path& path) {
  std::error_code ignored;
  const fs::path whole = fs::absolute(path, ignored).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.add(bytes);
  return hash.hex();
}

std::string sha256_file(const fs::path& path) {
  Sha256 hash;
  read_in_pieces(path, [&hash](std::string_view piece) { hash.add(piece); });
  return hash.hex();
}

}  // namespace switchyard
