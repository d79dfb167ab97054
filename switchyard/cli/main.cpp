#include <unistd.h>

#include <atomic>
#include <climits>
#include <csignal>
#include <iostream>

#include "switchyard/cli/cli.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/kernels/memory.hpp"

namespace {

// The one global of the program: a signal handler can reach nothing else.
std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may only use lock-free atomics");

extern "C" void request_stop(int signal_number) {
  stop_requested.store(true);
  // A second signal ends the program at once. That of a launcher is told over and over.
  if (signal_number != SIGUSR1) std::signal(signal_number, SIG_DFL);
}

std::string executable_path(const char* fallback) {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  return length > 0 ? std::string(path, static_cast<size_t>(length)) : fallback;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGCHLD, SIG_DFL);  // a parent may hand on that it ignores it: nobody could tell then how our children ended
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  if (switchyard::started_by_mpi()) std::signal(SIGUSR1, request_stop);  // mpirun hands it on, and kills the ranks on others
  std::signal(SIGPIPE, SIG_IGN);  // `switchyard list scopes | head -1`: the write fails instead
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
