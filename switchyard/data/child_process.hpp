#pragma once
// Running another program without a shell.

#include <filesystem>
#include <string>
#include <vector>

namespace switchyard {

struct ChildResult {
  int exit_code = 0;   // 128 + signal when a signal ended it
  std::string output;  // what it wrote to standard output
  std::string errors;  // and to standard error
};

/// Runs `command` (looked up in PATH) in `folder` with an empty standard input and waits for it.
/// @throws DataError when it cannot be started; a failing exit code is the caller's to judge
[[nodiscard]] ChildResult run_child(const std::vector<std::string>& command, const std::filesystem::path& folder);

}  // namespace switchyard
