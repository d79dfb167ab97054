#pragma once
// Other programs, run without a shell. Linux.

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

enum class ChildOutput {
  Read,   // by the ChildProcess
  Piped,  // by its owner, from the descriptors; the ChildProcess reads nothing then
};

struct ChildCommand {
  std::vector<std::string> arguments;                  // the program first: a path, or a name that is looked up in PATH
  std::map<std::string, std::string> environment = {};  // beside that of this process
  std::filesystem::path folder = {};                    // to run in; empty: that of this process
  ChildOutput output = ChildOutput::Read;               // and errors
  int orphaned = SIGTERM;                               // the signal that it gets when its parent dies
};

/// Runs with an empty standard input, in a process group of its own, so that Ctrl-C reaches only the parent, which decides;
/// gets a signal when the parent, or the thread of it that made this object, dies. Its output is read without blocking. It is
/// never the parent's own: a child in another process group is stopped when it writes to a terminal with `stty tostop`.
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
  /// The same as it came, whole lines or not.
  [[nodiscard]] std::string read_output();
  /// The end of what was written to standard error so far: at most 16 kB.
  [[nodiscard]] const std::string& error_tail() const { return error_tail_; }
  /// False once the child has ended; its last lines may still be read then.
  [[nodiscard]] bool running();
  /// Reads on until the child has ended and returns its exit code. Its output may still be read then. A Piped one must not write
  /// more than a pipe holds.
  int wait();
  /// Exit code; 128 + signal when a signal ended it. None while running.
  [[nodiscard]] std::optional<int> exit_code() const { return exit_code_; }
  /// The signal that ended it itself, of which exit_code() cannot tell a child that exits so because its own child was ended. None
  /// while running, and where it exited.
  [[nodiscard]] std::optional<int> ending_signal() const { return ending_signal_; }
  /// Sends the signal if the child still runs.
  void signal(int number);
  /// Whether the child has a handler for the signal now.
  [[nodiscard]] bool catches(int number) const;

  [[nodiscard]] int output_descriptor() const { return output_; }
  [[nodiscard]] int error_descriptor() const { return error_; }

 private:
  void read_available();
  int note_end(int status);
  ChildOutput reading_ = ChildOutput::Read;
  pid_t pid_ = -1;
  int output_ = -1;
  int error_ = -1;
  std::string unread_;  // of standard output
  std::string error_tail_;
  std::optional<int> exit_code_;
  std::optional<int> ending_signal_;
};

struct ChildResult {
  int exit_code = 0;   // 128 + signal when a signal ended it
  std::string output;  // what it wrote to standard output
  std::string errors;  // and to standard error: the last 16 kB
};

/// Runs a program to its end.
/// @throws DataError when it cannot be started; a failing exit code is the caller's to judge
[[nodiscard]] ChildResult run_child(const ChildCommand& command);

/// Returns when one of the children has written, closed an output or ended, or after the timeout.
void wait_for_any(const std::vector<ChildProcess*>& children, std::chrono::milliseconds timeout);

}  // namespace switchyard
