#include "switchyard/core/folder_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {

FolderLock::FolderLock(std::filesystem::path path, const std::string& name)
    : path_(std::move(path)), folder_(::open(path_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)),
      file_(::open((path_ / kFileName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
  SWITCHYARD_CHECK(file_.get() >= 0, DataError, "cannot write in ", name, ": ", std::strerror(errno));
}

std::unique_ptr<FolderLock> FolderLock::take(const std::filesystem::path& folder, const std::string& name) {
  std::unique_ptr<FolderLock> lock(new FolderLock(folder, name));
  if (::flock(lock->file_.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  SWITCHYARD_CHECK(errno == EWOULDBLOCK, DataError, "cannot lock ", name, ": ", std::strerror(errno));
  return nullptr;
}

}  // namespace switchyard
