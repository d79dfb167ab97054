#include "switchyard/core/folder_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "switchyard/core/error.hpp"

namespace switchyard {

std::unique_ptr<FolderLock> FolderLock::take(const std::filesystem::path& folder, const std::string& name) {
  const int descriptor = ::open((folder / kFileName).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  SWITCHYARD_CHECK(descriptor >= 0, DataError, "cannot write in ", name, ": ", std::strerror(errno));
  std::unique_ptr<FolderLock> lock(new FolderLock(descriptor));
  if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) return lock;
  SWITCHYARD_CHECK(errno == EWOULDBLOCK, DataError, "cannot lock ", name, ": ", std::strerror(errno));
  return nullptr;
}

FolderLock::~FolderLock() { ::close(descriptor_); }

}  // namespace switchyard
