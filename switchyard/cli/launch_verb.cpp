#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <limits>
#include <memory>
#include <optional>

#include "switchyard/cli/relay.hpp"
#include "switchyard/cli/terminal.hpp"
#include "switchyard/cli/verbs.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/child_process.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kLookAgain{50};  // a signal ends the wait at once
constexpr std::chrono::seconds kTellAgain{1};
constexpr std::chrono::seconds kStart{10};  // ranks listen long before
constexpr size_t kMostHeld = size_t{1} << 20U;

using Clock = std::chrono::steady_clock;

struct LaunchArguments {
  int64_t num_ranks = 0;
  int64_t num_threads = 0;
  std::vector<std::string> command;
};

std::unique_ptr<ChildProcess> start_mpirun(const std::vector<std::string>& command) {
  ChildCommand child{.arguments = command, .output = ChildOutput::Piped};
  // mpirun gives the ranks a terminal of its own, whatever ours is.
  if (detect_screen(STDOUT_FILENO) == Screen::Plain) child.environment["NO_COLOR"] = "1";
  try {
    return std::make_unique<ChildProcess>(child);
  } catch (const DataError& error) {
    throw DataError(join_text(error.what(), "; install Open MPI (Debian: openmpi-bin), or train without launch"));
  }
}

// mpirun ends its ranks when what it writes finds no reader, and is stopped by a terminal with `stty tostop`; so it writes to us.
struct Relays {
  Relay output;
  Relay errors;
};

// @param most_held  see Relay
void wait_for_output(const Relays& relays, size_t most_held) {
  std::vector<pollfd> polled = relays.output.awaited(most_held);
  const std::vector<pollfd> errors = relays.errors.awaited(most_held);
  polled.insert(polled.end(), errors.begin(), errors.end());
  poll(polled.data(), polled.size(), static_cast<int>(kLookAgain.count()));
}

/// Exit code of mpirun, 128 + signal when one ended it. Ctrl-C does not reach mpirun, which would kill the ranks before they have
/// saved: a wish to stop is handed to them, and they save and end. While they are being started mpirun may lose it, so then it is
/// told again and again. Before it listens, and at its own end when it no longer does, it would be ended by that.
int wait_for_ranks(ChildProcess& mpirun, Relays& relays, const Session& session) {
  const Clock::time_point begin = Clock::now();
  Clock::time_point told{};
  while (mpirun.running()) {
    const Clock::time_point now = Clock::now();
    const bool starting = now - begin < kStart;
    const bool stops = session.stop->load();
    if (stops && (told == Clock::time_point{} || (starting && now - told > kTellAgain)) && mpirun.catches(SIGUSR1)) {
      mpirun.signal(SIGUSR1);
      told = now;
    }
    // An mpirun that waits for us to take its output hands nothing on.
    const size_t most_held = stops ? std::numeric_limits<size_t>::max() : kMostHeld;
    relays.output.move(most_held);
    relays.errors.move(most_held);
    wait_for_output(relays, most_held);
  }
  relays.output.move(std::numeric_limits<size_t>::max());
  relays.errors.finish();  // before we may wait for the reader of the other
  relays.output.finish();
  return mpirun.exit_code().value();
}

/// mpirun's own exit code is 128 + signal too where a rank was ended by one.
std::string what_ended(const ChildProcess& mpirun) {
  if (const std::optional<int> signal = mpirun.ending_signal()) {
    return join_text("mpirun was killed by signal ", *signal, "; its ranks end by themselves, and files /dev/shm/vader_segment.* of "
                     "theirs may be left");
  }
  const int code = mpirun.exit_code().value();
  if (code == kExitFailed) return "mpirun ended with exit code 1 and no rank said why, as where mpirun itself is told to end";
  return join_text("a rank was ended", code > 128 ? join_text(" by signal ", code - 128) : "", " (mpirun's exit code is ", code,
                   "), and mpirun ended the others");
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
  const std::vector<std::string> command = mpirun_command(arguments.num_ranks, arguments.num_threads, program);
  const std::unique_ptr<ChildProcess> mpirun = start_mpirun(command);
  Relays relays = {.output = Relay(mpirun->output_descriptor(), STDOUT_FILENO),
                   .errors = Relay(mpirun->error_descriptor(), STDERR_FILENO)};
  const int code = wait_for_ranks(*mpirun, relays, session);
  if (relays.output.failed()) session.out.setstate(std::ios::badbit);  // told as that of any other verb
  const bool told = relays.errors.tail().find("switchyard: ") != std::string::npos;
  if (code == kExitDone || code == kExitWrongUse || (code == kExitFailed && told)) return code;
  // Ranks that are asked to stop before they listen are ended by the asking.
  throw DataError(join_text(session.stop->load() ? "stopped, perhaps before all could save: " : "", what_ended(*mpirun),
                            "; what was saved can be resumed: switchyard launch -n ", arguments.num_ranks,
                            " -- train --resume RUN"));
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
