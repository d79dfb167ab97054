#include "switchyard/train/run_folder.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/train/run_store.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigName = "config.toml";

fs::path absolute_folder(const fs::path& path) {
  SWITCHYARD_CHECK(!path.empty(), UsageError, "the run folder is empty; expected a path");
  fs::path result = fs::absolute(path).lexically_normal();
  return result.has_filename() ? result : result.parent_path();
}

/// Those that were missing, the innermost first.
std::vector<fs::path> make_folder(const fs::path& path) {
  std::error_code error;
  SWITCHYARD_CHECK(!fs::exists(path, error) || is_abandoned_start(path), UsageError, "the run folder ", path.string(),
                   " exists already and is not an empty folder; resume that run with --resume, or give another folder");
  std::vector<fs::path> made;
  for (fs::path at = path; at.has_relative_path() && !fs::exists(at, error); at = at.parent_path()) made.push_back(at);
  fs::create_directories(path, error);
  SWITCHYARD_CHECK(!error, DataError, "cannot make the run folder ", path.string(), ": ", error.message());
  return made;
}

/// In checkpoints/ all names with a leading point are unfinished or being removed.
void remove_leftovers(const fs::path& run) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error)) {
    if (is_part(entry.path())) fs::remove(entry.path(), error);
  }
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", error)) {
    if (entry.path().filename().string().starts_with(".")) fs::remove_all(entry.path(), error);
  }
}

}  // namespace

bool is_abandoned_start(const fs::path& folder) {
  std::error_code error;
  const fs::directory_iterator entries(folder, error);
  if (error) return false;  // no folder, or one that cannot be read
  return std::all_of(entries, fs::directory_iterator(), [](const fs::directory_entry& entry) {
    return entry.path().filename() == FolderLock::kFileName || is_part(entry.path());
  });
}

RunFolder::RunFolder(const fs::path& path, Resume resume) : path_(absolute_folder(path)) {
  if (resume == Resume::No) {
    made_ = make_folder(path_);
  } else {
    SWITCHYARD_CHECK(path_exists(path_ / kConfigName), UsageError, path_.string(), " is no run folder: it has no ",
                     kConfigName, "; to start a run there, leave --resume out");
  }
  lock_ = FolderLock::take(path_, "the run folder " + path_.string());
  SWITCHYARD_CHECK(lock_ != nullptr, UsageError, "the run folder ", path_.string(),
                   " is in use by another process; wait for it or end it");
  // It may have been begun and ended since it was looked at.
  SWITCHYARD_CHECK(resume == Resume::Yes || !path_exists(path_ / kConfigName), UsageError, "the run folder ", path_.string(),
                   " was taken by another process; resume that run with --resume, or give another folder");
  remove_leftovers(path_);
}

RunFolder::~RunFolder() {
  if (!lock_->folder_is_in_place()) return;  // what is there is not ours
  // A run that could not start leaves nothing that was not there.
  std::error_code ignored;
  if (!fs::exists(path_ / kConfigName, ignored)) {
    fs::remove(path_ / FolderLock::kFileName, ignored);
    for (const fs::path& made : made_) fs::remove(made, ignored);  // only if it is empty
  }
}

fs::path RunFolder::store_path() const { return path_.parent_path() / kRunStoreName; }

RunConfig RunFolder::read_config_file() const {
  RunConfig config;
  read_config(parse_config_file(path_ / kConfigName), config);
  return config;
}

void RunFolder::write_config_file(const RunConfig& config) const {
  write_file_atomically(path_ / kConfigName, to_toml(config));
}

void RunFolder::check_in_place() {
  SWITCHYARD_CHECK(lock_->folder_is_in_place(), DataError, "the run folder ", path_.string(),
                   " was moved or removed while the run wrote to it; steps after its last checkpoint are lost. If it is still there under "
                   "another name, go on with --resume and that name");
  if (lock_->file_is_in_place()) return;
  std::unique_ptr<FolderLock> again = FolderLock::take(path_, "the run folder " + path_.string());
  SWITCHYARD_CHECK(again != nullptr, DataError, "the run folder ", path_.string(), " is in use by another process, which came in when its ",
                   FolderLock::kFileName, " was removed; this one ends without writing. Leave that file where it is");
  lock_ = std::move(again);
}

}  // namespace switchyard
