#include "switchyard/core/append_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace switchyard {

AppendFile::AppendFile(std::filesystem::path path)
    : path_(std::move(path)), file_(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (file_.get() < 0) throw_failed("write", path_, errno);
}

int AppendFile::cut_torn() {
  if (torn_at_ && ::ftruncate(file_.get(), *torn_at_) != 0) return errno;
  torn_at_.reset();
  return 0;
}

int AppendFile::append(std::string_view record) {
  if (const int reason = cut_torn(); reason != 0) return reason;
  struct stat before {};
  if (::fstat(file_.get(), &before) != 0) return errno;
  int64_t written = 0;
  const int reason = write_all(file_.get(), record, written);
  if (reason != 0 && written > 0) {
    torn_at_ = before.st_size;
    static_cast<void>(cut_torn());  // else the next append does it, or whoever reads the file next
  }
  return reason;
}

void AppendFile::sync() {
  // Pipes and some network file systems cannot, and say so with EINVAL.
  if (::fdatasync(file_.get()) != 0 && errno != EINVAL) throw_failed("sync", path_, errno);
  if (!is_named_on_disk_) sync_path(parent_of(path_));
  is_named_on_disk_ = true;
}

}  // namespace switchyard
