#include "switchyard/data/child_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int kExecFailed = 127;

std::string reason_text(int reason) { return std::generic_category().message(reason); }

// Both ends of a pipe; closed on every path.
class Pipe {
 public:
  Pipe() { SWITCHYARD_CHECK(::pipe2(ends_.data(), O_CLOEXEC) == 0, DataError, "cannot make a pipe: ", reason_text(errno)); }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  [[nodiscard]] int read_end() const { return ends_[0]; }
  [[nodiscard]] int write_end() const { return ends_[1]; }
  void close_write_end() { close_end(1); }

 private:
  void close_end(size_t which) {
    if (ends_[which] >= 0) ::close(ends_[which]);
    ends_[which] = -1;
  }
  std::array<int, 2> ends_{-1, -1};
};

// In the child, after fork: only async-signal-safe calls until exec.
[[noreturn]] void become(char* const* arguments, const char* folder, int output, int errors, int failure) {
  const int nothing = ::open("/dev/null", O_RDONLY);
  const bool ready = nothing >= 0 && ::dup2(nothing, STDIN_FILENO) >= 0 && ::dup2(output, STDOUT_FILENO) >= 0 &&
                     ::dup2(errors, STDERR_FILENO) >= 0 && ::chdir(folder) == 0;
  if (ready) ::execvp(arguments[0], arguments);
  const int reason = errno;
  // Read by the parent; if even that fails, the exit code says enough.
  if (::write(failure, &reason, sizeof reason) < 0) ::_exit(kExecFailed);
  ::_exit(kExecFailed);
}

// Reads both pipes until both are closed: a child that fills one while we wait on the other would hang.
void collect(const Pipe& output, const Pipe& errors, ChildResult& result) {
  std::array<pollfd, 2> ends{pollfd{output.read_end(), POLLIN, 0}, pollfd{errors.read_end(), POLLIN, 0}};
  const std::array<std::string*, 2> texts{&result.output, &result.errors};
  std::array<char, 4096> buffer;
  while (ends[0].fd >= 0 || ends[1].fd >= 0) {
    if (::poll(ends.data(), ends.size(), -1) < 0) {
      SWITCHYARD_CHECK(errno == EINTR, DataError, "cannot wait for a child process: ", reason_text(errno));
      continue;
    }
    for (size_t i = 0; i < ends.size(); ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      const ssize_t count = ::read(ends[i].fd, buffer.data(), buffer.size());
      if (count > 0) texts[i]->append(buffer.data(), static_cast<size_t>(count));
      if (count == 0 || (count < 0 && errno != EINTR)) ends[i].fd = -1;
    }
  }
}

int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    SWITCHYARD_CHECK(errno == EINTR, DataError, "cannot wait for a child process: ", reason_text(errno));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

ChildResult run_child(const std::vector<std::string>& command, const std::filesystem::path& folder) {
  SWITCHYARD_CHECK(!command.empty(), UsageError, "run_child was given no command");
  std::vector<char*> arguments;
  // execvp's type is not const, though it changes nothing.
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  Pipe output, errors, failure;
  const std::string place = folder.string();
  const pid_t child = ::fork();
  SWITCHYARD_CHECK(child >= 0, DataError, "cannot start ", command[0], ": ", reason_text(errno));
  if (child == 0) become(arguments.data(), place.c_str(), output.write_end(), errors.write_end(), failure.write_end());
  output.close_write_end();
  errors.close_write_end();
  failure.close_write_end();
  ChildResult result;
  collect(output, errors, result);
  int reason = 0;
  const bool not_started = ::read(failure.read_end(), &reason, sizeof reason) == sizeof reason;
  result.exit_code = wait_for(child);
  SWITCHYARD_CHECK(!not_started, DataError, "cannot run ", command[0], " in ", place, ": ", reason_text(reason));
  return result;
}

}  // namespace switchyard
