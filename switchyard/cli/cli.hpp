#pragma once
// The program: parses the command line, runs one verb, turns errors into one message and an exit code.

#include <atomic>
#include <ostream>
#include <string>
#include <vector>

#include "switchyard/cli/terminal.hpp"

namespace switchyard {

inline constexpr int kExitDone = 0;      // everything that was asked for is there
inline constexpr int kExitFailed = 1;    // what was asked for is not there; also after a signal, with what was done saved
inline constexpr int kExitWrongUse = 2;  // wrong arguments or configuration

/// Where output goes and how the user can stop the work.
struct Session {
  std::ostream& out;
  std::ostream& err;
  Screen out_screen = Screen::Plain;
  Screen err_screen = Screen::Plain;
  const std::atomic<bool>* stop = nullptr;  // set by a wish to stop, see main.cpp; never null when a verb runs
  std::string program = {};                  // path of this executable, for the children of a testbed
  std::string command = {};                  // as typed; recorded in run logs
};

/// @param arguments  without the program's name
/// @return an exit code as above
[[nodiscard]] int run_cli(const std::vector<std::string>& arguments, Session& session);

}  // namespace switchyard
