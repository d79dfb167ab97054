#include "switchyard/core/child_process.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::chrono::milliseconds kWait{50};

std::vector<std::string> run_to_end(ChildProcess& child) {
  std::vector<std::string> lines;
  for (bool running = true; running;) {
    running = child.running();
    for (std::string& line : child.read_lines()) lines.push_back(std::move(line));
    if (running) wait_for_any({&child}, kWait);
  }
  return lines;
}

ChildCommand shell(const std::string& script) { return {.arguments = {"/bin/sh", "-c", script}}; }

TEST(ChildProcess, GivesLinesErrorsAndExitCode) {
  ChildProcess child(shell("echo one; echo two; echo wrong >&2; exit 7"));
  EXPECT_THAT(run_to_end(child), ElementsAre("one", "two"));
  EXPECT_EQ(child.error_tail(), "wrong\n");
  EXPECT_EQ(child.exit_code(), 7);
}

TEST(ChildProcess, HasTheEnvironmentItIsGivenAndNoInput) {
  ChildCommand command = shell("echo \"$SWITCHYARD_TEST\"; cat; echo end");
  command.environment["SWITCHYARD_TEST"] = "a b";
  ChildProcess child(command);
  EXPECT_THAT(run_to_end(child), ElementsAre("a b", "end"));
}

TEST(ChildProcess, LeavesToItsOwnerWhatIsPiped) {
  ChildCommand command = shell("echo said; echo wrong >&2; kill -PIPE $$; echo lives");
  command.output = ChildOutput::Piped;
  const auto handler = std::signal(SIGPIPE, SIG_IGN);
  ChildProcess child(command);
  EXPECT_EQ(child.wait(), 128 + SIGPIPE) << "what this process ignores ends the child";
  std::signal(SIGPIPE, handler);
  EXPECT_THAT(child.read_lines(), ElementsAre());
  EXPECT_EQ(child.error_tail(), "");
  std::array<char, 16> buffer{};
  EXPECT_EQ(std::string(buffer.data(), read(child.output_descriptor(), buffer.data(), buffer.size())), "said\n");
  EXPECT_EQ(std::string(buffer.data(), read(child.error_descriptor(), buffer.data(), buffer.size())), "wrong\n");
}

TEST(ChildProcess, TellsWhatItCatches) {
  ChildProcess child(shell("trap : USR1; echo ready; while true; do read x < /dev/zero; done"));
  while (child.read_lines().empty()) wait_for_any({&child}, kWait);
  EXPECT_TRUE(child.catches(SIGUSR1));
  EXPECT_FALSE(child.catches(SIGUSR2));
  child.signal(SIGKILL);
  (void)child.wait();
  EXPECT_FALSE(child.catches(SIGUSR1));
}

TEST(ChildProcess, KeepsTheEndOfALongErrorOutput) {
  ChildProcess child(shell("i=0; while [ $i -lt 2000 ]; do echo \"line $i of the error\" >&2; i=$((i+1)); done"));
  (void)run_to_end(child);
  EXPECT_LE(child.error_tail().size(), 16U * 1024U);
  EXPECT_THAT(child.error_tail(), HasSubstr("line 1999 of the error\n"));
}

TEST(ChildProcess, ReportsTheSignalThatEndedIt) {
  ChildProcess child(shell("echo ready; while true; do read x < /dev/zero; done"));
  while (child.read_lines().empty()) wait_for_any({&child}, kWait);
  child.signal(SIGTERM);
  EXPECT_EQ(child.ending_signal(), std::nullopt);
  (void)run_to_end(child);
  EXPECT_EQ(child.exit_code(), 128 + SIGTERM);
  EXPECT_EQ(child.ending_signal(), SIGTERM);
  ChildProcess exits(shell("exit 143"));  // as one does whose own child was ended by a signal
  EXPECT_EQ(exits.wait(), 128 + SIGTERM);
  EXPECT_EQ(exits.ending_signal(), std::nullopt);
}

// The parent must be another process than this one: it dies.
TEST(ChildProcess, GetsTheSignalItIsToGetWhenItsParentDies) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    const std::string ours = std::to_string(ends[1]);
    ChildCommand command = shell("exec >&" + ours + "; trap 'echo told; exit 0' USR1; echo ready; while true; do true; done");
    command.orphaned = SIGUSR1;
    const ChildProcess orphan(command);
    close(ends[1]);
    while (true) pause();
  }
  close(ends[1]);
  std::string said;
  char letter = 0;
  while (said != "ready\n" && read(ends[0], &letter, 1) == 1) said += letter;
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  while (read(ends[0], &letter, 1) == 1) said += letter;
  close(ends[0]);
  EXPECT_EQ(said, "ready\ntold\n");
}

TEST(RunChild, GivesOutputErrorsAndExitCode) {
  // More than a pipe holds on both outputs: reading one after the other would hang.
  const ChildResult result =
      run_child(shell("head -c 200000 /dev/zero | tr '\\0' e >&2; echo end >&2; head -c 200000 /dev/zero | tr '\\0' o; exit 3"));
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.output, std::string(200000, 'o'));
  EXPECT_EQ(result.errors, std::string(16 * 1024 - 4, 'e') + "end\n");
  EXPECT_EQ(run_child(shell("kill -9 $$")).exit_code, 137);
}

TEST(RunChild, WaitsForOneThatClosesItsOutputsFirst) {
  EXPECT_EQ(run_child(shell("exec >&- 2>&-; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 5")).exit_code, 5);
}

TEST(RunChild, LooksTheProgramUpAndRunsItInTheFolder) {
  EXPECT_EQ(run_child({.arguments = {"pwd"}, .folder = "/usr"}).output, "/usr\n");
}

TEST(ChildProcess, SaysWhatCannotBeStarted) {
  EXPECT_THAT([] { ChildProcess child({.arguments = {"/no/such/program"}}); },
              ::testing::ThrowsMessage<DataError>(
                  ::testing::AllOf(HasSubstr("/no/such/program"), HasSubstr("No such file"))));
  EXPECT_THAT([] { (void)run_child({.arguments = {"pwd"}, .folder = "/no/such/folder"}); },
              ::testing::ThrowsMessage<DataError>(HasSubstr("cannot run pwd in /no/such/folder: No such file")));
}

}  // namespace
}  // namespace switchyard
