#include "switchyard/core/child_process.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <string_view>
#include <system_error>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr size_t kErrorTailBytes = size_t{16} * 1024;

std::string reason_text(int reason) { return std::generic_category().message(reason); }

struct Pipe {
  int read_end = -1;
  int write_end = -1;
};

Pipe open_pipe() {
  std::array<int, 2> ends{};
  SWITCHYARD_CHECK(pipe2(ends.data(), O_CLOEXEC) == 0, DataError, "cannot open a pipe: ", reason_text(errno));
  return {ends[0], ends[1]};
}

void close_once(int& descriptor) {
  if (descriptor >= 0) close(descriptor);
  descriptor = -1;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> result;
  for (std::string& text : texts) result.push_back(text.data());
  result.push_back(nullptr);
  return result;
}

std::vector<std::string> child_environment(const std::map<std::string, std::string>& added) {
  std::vector<std::string> entries;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    if (added.count(text.substr(0, text.find('='))) == 0) entries.push_back(text);
  }
  for (const auto& [name, value] : added) entries.push_back(name + "=" + value);
  return entries;
}

// Between fork and exec only calls that are safe in a signal handler: other threads of the parent may hold locks.
[[noreturn]] void become(char** arguments, char** environment, const char* folder, pid_t parent, int orphaned, int output,
                         int error, int failure) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, orphaned);
  const int nothing = open("/dev/null", O_RDONLY);
  if (getppid() == parent && nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0 &&
      dup2(error, STDERR_FILENO) >= 0 && chdir(folder) == 0) {
    // What is ignored would stay so through exec.
    for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGPIPE, SIGXFSZ}) ::signal(number, SIG_DFL);
    execvpe(arguments[0], arguments, environment);
  }
  const int reason = errno;
  if (write(failure, &reason, sizeof(reason)) < 0) _exit(126);
  _exit(127);
}

// What is there now; an end of file closes the descriptor.
std::string take_from(int& descriptor) {
  std::string text;
  std::array<char, 4096> buffer{};
  while (descriptor >= 0) {
    const ssize_t count = read(descriptor, buffer.data(), buffer.size());
    if (count > 0) {
      text.append(buffer.data(), static_cast<size_t>(count));
    } else if (count < 0 && errno == EINTR) {
      continue;
    } else if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      break;
    } else {
      close_once(descriptor);
    }
  }
  return text;
}

}  // namespace

ChildProcess::ChildProcess(const ChildCommand& command) : reading_(command.output) {
  SWITCHYARD_CHECK(!command.arguments.empty(), UsageError, "a child process needs a program to run");
  std::vector<std::string> arguments = command.arguments;
  std::vector<std::string> environment = child_environment(command.environment);
  const std::vector<char*> argument_pointers = pointers(arguments);
  const std::vector<char*> environment_pointers = pointers(environment);
  Pipe output = open_pipe();
  Pipe error = open_pipe();
  Pipe failure = open_pipe();  // carries errno when exec fails; exec closes it otherwise
  const std::string folder = command.folder.empty() ? "." : command.folder.string();
  const pid_t parent = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    become(const_cast<char**>(argument_pointers.data()), const_cast<char**>(environment_pointers.data()), folder.c_str(), parent,
           command.orphaned, output.write_end, error.write_end, failure.write_end);
  }
  const int fork_error = errno;
  close_once(output.write_end);
  close_once(error.write_end);
  close_once(failure.write_end);
  int reason = 0;
  ssize_t count = 0;
  do {
    count = pid_ < 0 ? 0 : read(failure.read_end, &reason, sizeof(reason));
  } while (count < 0 && errno == EINTR);
  close_once(failure.read_end);
  if (pid_ < 0 || count > 0) {
    close_once(output.read_end);
    close_once(error.read_end);
    if (pid_ > 0) waitpid(pid_, nullptr, 0);
    throw DataError(join_text("cannot run ", command.arguments.front(), command.folder.empty() ? "" : " in " + folder, ": ",
                              reason_text(pid_ < 0 ? fork_error : reason)));
  }
  output_ = output.read_end;
  error_ = error.read_end;
  fcntl(output_, F_SETFL, O_NONBLOCK);
  fcntl(error_, F_SETFL, O_NONBLOCK);
}

ChildProcess::~ChildProcess() {
  if (!exit_code_) {
    signal(SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close_once(output_);
  close_once(error_);
}

std::vector<std::string> ChildProcess::read_lines() {
  read_available();
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t end = unread_.find('\n'); end != std::string::npos; end = unread_.find('\n', begin)) {
    lines.push_back(unread_.substr(begin, end - begin));
    begin = end + 1;
  }
  unread_.erase(0, begin);
  return lines;
}

std::string ChildProcess::read_output() {
  read_available();
  return std::exchange(unread_, {});
}

void ChildProcess::read_available() {
  if (reading_ == ChildOutput::Piped) return;
  unread_ += take_from(output_);
  error_tail_ += take_from(error_);
  if (error_tail_.size() > kErrorTailBytes) error_tail_.erase(0, error_tail_.size() - kErrorTailBytes);
}

int ChildProcess::note_end(int status) {
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  exit_code_ = code;
  if (WIFSIGNALED(status)) ending_signal_ = WTERMSIG(status);
  read_available();
  return code;
}

bool ChildProcess::running() {
  read_available();
  if (exit_code_) return false;
  int status = 0;
  const pid_t ended = waitpid(pid_, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return true;
  SWITCHYARD_CHECK(ended > 0, DataError, "cannot tell how a child process ended: ", reason_text(errno));
  (void)note_end(status);
  return false;
}

int ChildProcess::wait() {
  // Both outputs at once: a child that fills one while we wait on the other would hang.
  const auto reads = [this] { return reading_ == ChildOutput::Read && (output_ >= 0 || error_ >= 0); };
  for (read_available(); reads(); read_available()) wait_for_any({this}, std::chrono::milliseconds(-1));
  if (exit_code_) return *exit_code_;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0) {
    SWITCHYARD_CHECK(errno == EINTR, DataError, "cannot wait for a child process: ", reason_text(errno));
  }
  return note_end(status);
}

void ChildProcess::signal(int number) {
  if (!exit_code_) kill(pid_, number);
}

bool ChildProcess::catches(int number) const {
  if (exit_code_) return false;
  std::ifstream status("/proc/" + std::to_string(pid_) + "/status");
  for (std::string line; std::getline(status, line);) {
    constexpr std::string_view kCaught = "SigCgt:";  // a set, as a number in base 16
    if (line.starts_with(kCaught)) return (std::stoull(line.substr(kCaught.size()), nullptr, 16) >> (number - 1) & 1U) != 0;
  }
  return false;
}

ChildResult run_child(const ChildCommand& command) {
  ChildProcess child(command);
  const int exit_code = child.wait();
  return {exit_code, child.read_output(), child.error_tail()};
}

void wait_for_any(const std::vector<ChildProcess*>& children, std::chrono::milliseconds timeout) {
  std::vector<pollfd> polled;
  for (const ChildProcess* child : children) {
    for (const int descriptor : {child->output_descriptor(), child->error_descriptor()}) {
      if (descriptor >= 0) polled.push_back({descriptor, POLLIN, 0});
    }
  }
  // A signal ends the wait early, which is what the caller wants. Without open outputs this is a plain wait for exit.
  poll(polled.data(), polled.size(), static_cast<int>(timeout.count()));
}

}  // namespace switchyard
