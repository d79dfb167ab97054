#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <memory>

#include "switchyard/cli/terminal.hpp"
#include "switchyard/cli/verbs.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int kNotStarted = 127;                    // what a shell gives for a program that is not there
constexpr std::chrono::milliseconds kLookAgain{50};  // a signal ends the wait at once
constexpr std::chrono::seconds kTellAgain{1};
constexpr std::chrono::seconds kStart{10};  // ranks listen long before

using Clock = std::chrono::steady_clock;

struct LaunchArguments {
  int64_t num_ranks = 0;
  int64_t num_threads = 0;
  std::vector<std::string> command;
};

// In a process group of its own, so that Ctrl-C reaches only this process: mpirun would kill the ranks before they have saved.
pid_t start_mpirun(std::vector<std::string> command) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t child = fork();
  SWITCHYARD_CHECK(child >= 0, DataError, "cannot start a process: ", std::strerror(errno));
  if (child > 0) return child;
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);  // when this launcher is killed
  // mpirun gives the ranks a terminal of its own, whatever ours is.
  if (detect_screen(STDOUT_FILENO) == Screen::Plain) setenv("NO_COLOR", "1", 1);
  const int nothing = open("/dev/null", O_RDONLY);  // a background group that reads the terminal would be stopped
  if (getppid() == parent && nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0) {
    for (const int number : {SIGINT, SIGTERM, SIGPIPE}) std::signal(number, SIG_DFL);
    execvp(arguments[0], arguments.data());
  }
  _exit(kNotStarted);
}

/// Exit code of mpirun, 128 + signal when one ended it. A wish to stop is handed to the ranks, which save and end. While they are
/// being started mpirun may lose it, so then it is told again and again; later once, for at its own end mpirun would be ended by it.
int wait_for_ranks(pid_t mpirun, const Session& session) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point told{};
  int status = 0;
  pid_t ended = 0;
  while ((ended = waitpid(mpirun, &status, WNOHANG)) <= 0) {
    SWITCHYARD_CHECK(ended == 0 || errno == EINTR, DataError, "cannot tell how mpirun ended: ", std::strerror(errno));
    const Clock::time_point now = Clock::now();
    const bool starting = now - begin < kStart;
    if (session.stop->load() && (told == Clock::time_point{} || (starting && now - told > kTellAgain))) {
      kill(mpirun, SIGUSR1);
      told = now;
    }
    poll(nullptr, 0, static_cast<int>(kLookAgain.count()));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int launch(const LaunchArguments& arguments, Session& session) {
  SWITCHYARD_CHECK(!started_by_mpi(), UsageError, "launch was itself started by mpirun or srun; give those the command: mpirun -n ",
                   arguments.num_ranks, " switchyard train ...");
  SWITCHYARD_CHECK(arguments.command.front() == "train", UsageError, "launch runs train on ranks, it was given '",
                   arguments.command.front(), "'; give: switchyard launch -n ", arguments.num_ranks,
                   " -- train CONFIG, and run other verbs without launch");
  std::vector<std::string> program = {session.program};
  program.insert(program.end(), arguments.command.begin(), arguments.command.end());
  // Else a number in the configuration would win over the one that was asked for here.
  if (arguments.num_threads > 0) program.insert(program.end(), {"--set", join_text("execution.threads=", arguments.num_threads)});
  const int code = wait_for_ranks(start_mpirun(mpirun_command(arguments.num_ranks, arguments.num_threads, program)), session);
  SWITCHYARD_CHECK(code != kNotStarted, DataError,
                   "mpirun cannot be started; install Open MPI (Debian: openmpi-bin), or train without launch");
  if (code == kExitDone || code == kExitFailed || code == kExitWrongUse) return code;
  // Ranks that are asked to stop before they listen are ended by the asking.
  throw DataError(join_text(session.stop->load() ? "stopped, perhaps before all could save: " : "", "a rank was ended",
                            code > 128 ? join_text(" by signal ", code - 128) : "",
                            " (mpirun's exit code is ", code, "), and mpirun ended the others; what was saved can be resumed: ",
                            "switchyard launch -n ", arguments.num_ranks, " -- train --resume RUN"));
}

}  // namespace

// Else the options of the ranks' verb would be taken for those of launch. Knows which of launch's own options take a value.
std::vector<std::string> with_command_apart(std::vector<std::string> arguments) {
  if (arguments.empty() || arguments.front() != "launch") return arguments;
  for (auto word = std::next(arguments.begin()); word != arguments.end() && *word != "--"; ++word) {
    if (!word->starts_with("-")) {
      arguments.insert(word, "--");
      return arguments;
    }
    const bool has_value_apart = *word == "-n" || *word == "--ranks" || *word == "--threads";
    if (has_value_apart && std::next(word) != arguments.end()) ++word;
  }
  return arguments;
}

void add_launch_verb(CLI::App& app, Action& chosen) {
  auto arguments = std::make_shared<LaunchArguments>();
  CLI::App* verb = app.add_subcommand(
      "launch", "Runs train on several ranks of this machine, through Open MPI's mpirun.\n"
                "Ctrl-C lets all ranks finish the step and save. When a rank dies, the others are ended.");
  verb->add_option("-n,--ranks", arguments->num_ranks, "ranks; they share the step's micro-batches")->required();
  verb->add_option("--threads", arguments->num_threads,
                   "threads of each rank, as execution.threads; default the cores divided by the ranks");
  verb->add_option("command", arguments->command, "train with its arguments, best after --")->required()->type_name("train ...");
  verb->footer("Example:\n  switchyard launch -n 2 -- train configs/train/quick.toml --set steps=50");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return launch(*arguments, session); };
  });
}

}  // namespace switchyard
