#include "switchyard/core/descriptor.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {

Descriptor::~Descriptor() {
  if (handle_ >= 0) ::close(handle_);
}

int Descriptor::finish() {
  if (::fsync(handle_) != 0) return errno;
  return ::close(std::exchange(handle_, -1)) == 0 ? 0 : errno;
}

int write_all(int handle, std::string_view bytes, int64_t& written) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(handle, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EIO;
    bytes.remove_prefix(static_cast<size_t>(count));
    written += count;
  }
  return 0;
}

bool is_open_at(int handle, const std::filesystem::path& path) {
  struct stat open {};
  struct stat there {};
  if (::fstat(handle, &open) != 0) return true;
  if (::stat(path.c_str(), &there) != 0) return errno != ENOENT && errno != ENOTDIR;
  return open.st_dev == there.st_dev && open.st_ino == there.st_ino;
}

void sync_path(const std::filesystem::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_failed("open", path, errno);
  // Some network file systems cannot sync a folder and say so with EINVAL; there is nothing better to do there.
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw_failed("sync", path, errno);
}

std::filesystem::path parent_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

void throw_failed(std::string_view action, const std::filesystem::path& path, int reason) {
  throw DataError(join_text("cannot ", action, " ", path.string(), ": ", std::generic_category().message(reason)));
}

}  // namespace switchyard
