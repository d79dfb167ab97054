#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <iostream>
#include <string_view>

#include "switchyard/cli/cli.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/kernels/memory.hpp"

namespace {

// The globals of the program: a signal handler can reach nothing else.
std::atomic<bool> stop_requested{false};
std::atomic<bool> was_told{false};  // by who started us
std::atomic<pid_t> first_parent{0};
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<pid_t>::is_always_lock_free,
              "a signal handler may only use lock-free atomics");

void end_by(int signal_number) {
  std::signal(signal_number, SIG_DFL);
  (void)raise(signal_number);  // acts when the handler returns
}

extern "C" void request_stop(int signal_number) {
  stop_requested.store(true);
  std::signal(signal_number, SIG_DFL);  // a second one ends the program at once
}

// A terminal that is closed tells it twice: the kernel does, and the shell.
extern "C" void hang_up(int) { stop_requested.store(true); }

// A wish that a testbed or a launcher hands on. It is no second wish: whoever asked them may have asked this process too, and a
// launcher tells it over and over. It is also what a dying testbed leaves: one that had told it before was asked twice.
extern "C" void be_told(int signal_number) {
  stop_requested.store(true);
  const bool insists = was_told.exchange(true) && getppid() != first_parent.load();
  if (insists) end_by(signal_number);
}

// Else reading a mapped file that was cut off ends the program without a word. Only calls that are safe in a signal handler.
extern "C" void tell_lost_page(int signal_number, siginfo_t* info, void*) {
  if (info->si_code != BUS_ADRERR) return end_by(signal_number);
  constexpr std::string_view kText =
      "switchyard: a file that was being read has become shorter, or its disk failed: was the data set or a checkpoint changed "
      "while it was in use? Put it back; what was saved can be resumed: switchyard train --resume RUN\n";
  const ssize_t ignored = write(STDERR_FILENO, kText.data(), kText.size());
  (void)ignored;
  _exit(switchyard::kExitFailed);
}

void handle_signals() {
  first_parent.store(getppid());
  std::signal(SIGCHLD, SIG_DFL);  // a parent may hand on that it ignores it: nobody could tell then how our children ended
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  std::signal(SIGUSR1, be_told);
  if (std::signal(SIGHUP, hang_up) == SIG_IGN) std::signal(SIGHUP, SIG_IGN);  // nohup
  std::signal(SIGPIPE, SIG_IGN);  // `switchyard list scopes | head -1`: the write fails instead
  std::signal(SIGXFSZ, SIG_IGN);  // ulimit -f: likewise
  struct sigaction lost_page {};
  lost_page.sa_sigaction = tell_lost_page;
  lost_page.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &lost_page, nullptr);
}

// A closed descriptor would be that of the next file which is opened, and what is said would be written into that. Writing fails
// as before.
void fill_closed_descriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) < 0 && errno == EBADF) (void)open("/dev/null", O_RDONLY);  // takes the lowest that is free
  }
}

std::string executable_path(const char* fallback) {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<size_t>(length)) : fallback;
}

}  // namespace

int main(int argc, char** argv) {
  fill_closed_descriptors();
  handle_signals();
  switchyard::keep_freed_memory();
  switchyard::Session session{std::cout, std::cerr};
  session.out_screen = switchyard::detect_screen(STDOUT_FILENO);
  session.err_screen = switchyard::detect_screen(STDERR_FILENO);
  session.stop = &stop_requested;
  session.program = executable_path(argv[0]);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  session.command = "switchyard";
  for (const std::string& argument : arguments) session.command += " " + switchyard::quoted_for_shell(argument);
  return switchyard::run_cli(arguments, session);
}
