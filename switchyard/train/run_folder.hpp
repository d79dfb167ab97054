#pragma once
// The folder of a run: config.toml, log.jsonl, TensorBoard events, checkpoints/. One process works on it at a time.

#include <filesystem>
#include <memory>
#include <vector>

#include "switchyard/core/folder_lock.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

enum class Resume { No, Yes };

/// Whether a folder holds nothing but what a process leaves that was killed before its first file was whole.
[[nodiscard]] bool is_abandoned_start(const std::filesystem::path& folder);

class RunFolder {
 public:
  /// Resume::No makes the folder; one that exists must be empty, or an abandoned start. Resume::Yes opens one that holds a run.
  /// Both remove what a killed process left half written.
  /// @throws UsageError naming the folder, and what to do; also when another process works on it
  RunFolder(const std::filesystem::path& path, Resume resume);
  ~RunFolder();  // removes the folders that it made, if no config.toml was written
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }  // absolute
  [[nodiscard]] std::filesystem::path log_path() const { return path_ / "log.jsonl"; }
  [[nodiscard]] std::filesystem::path store_path() const;  // beside the folder

  /// @throws ConfigError or DataError when config.toml cannot be read
  [[nodiscard]] RunConfig read_config_file() const;
  void write_config_file(const RunConfig& config) const;

  /// Before anything is written that must not land elsewhere. A lock whose file somebody removed is taken again.
  /// @throws DataError where the folder was moved, removed or replaced, or another process holds its lock by now
  void check_in_place();

 private:
  std::filesystem::path path_;
  std::vector<std::filesystem::path> made_;  // the innermost first
  std::unique_ptr<FolderLock> lock_;
};

}  // namespace switchyard
