#pragma once
// A child process whose output is read without blocking. Linux.

#include <sys/types.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

struct ChildCommand {
  std::vector<std::string> arguments;               // the program's path first; no shell is involved
  std::map<std::string, std::string> environment;   // beside that of this process
};

/// Runs in a process group of its own, so that Ctrl-C reaches only the parent, which decides; ends by SIGTERM when the
/// parent dies.
class ChildProcess {
 public:
  /// @throws DataError when the program cannot be started, with the reason
  explicit ChildProcess(const ChildCommand& command);
  /// Kills the child if it still runs, and waits for it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  /// Reads what has arrived; complete lines of standard output since the last call.
  [[nodiscard]] std::vector<std::string> read_lines();
  /// The end of what was written to standard error so far: at most 16 kB.
  [[nodiscard]] const std::string& error_tail() const { return error_tail_; }
  /// False once the child has ended; its last lines may still be read then.
  [[nodiscard]] bool running();
  /// Exit code; 128 + signal when a signal ended it. None while running.
  [[nodiscard]] std::optional<int> exit_code() const { return exit_code_; }
  /// Sends the signal if the child still runs.
  void signal(int number);

  [[nodiscard]] int output_descriptor() const { return output_; }
  [[nodiscard]] int error_descriptor() const { return error_; }

 private:
  void read_error();
  pid_t pid_ = -1;
  int output_ = -1;
  int error_ = -1;
  std::string partial_line_;
  std::string error_tail_;
  std::optional<int> exit_code_;
};

/// Returns when one of the children has written, closed an output or ended, or after the timeout.
void wait_for_any(const std::vector<ChildProcess*>& children, std::chrono::milliseconds timeout);

}  // namespace switchyard
