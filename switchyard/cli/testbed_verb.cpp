#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>

#include "switchyard/cli/testbed_text.hpp"
#include "switchyard/cli/verbs.hpp"
#include "switchyard/comm/mpi.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/report/report.hpp"
#include "switchyard/testbed/testbed.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

struct TestbedArguments {
  std::string config;
  std::string out;
  int64_t jobs = 0;
  std::vector<std::string> overrides;
  OutputFormat format = OutputFormat::Text;
  bool require_claims = false;
};

// Progress on the screen: a line for each run that ends, and below them the runs that go on.
class ScreenSink : public TestbedSink {
 public:
  ScreenSink(Session& session, OutputFormat format)
      : screen_(session.out_screen), format_(format), status_(session.out, session.out_screen) {}

  void update(const std::vector<RunProgress>& runs, int64_t changed) override {
    if (format_ == OutputFormat::Json) return;
    if (changed >= 0) {
      const std::string line = run_event_text(runs[static_cast<size_t>(changed)], screen_);
      if (!line.empty()) status_.print(line);
    }
    const bool any_running = std::any_of(runs.begin(), runs.end(), [](const RunProgress& run) {
      return run.status == RunStatus::Running;
    });
    if (any_running) status_.show(progress_text(runs, screen_));
  }

  void clear() { status_.clear(); }

 private:
  Screen screen_;
  OutputFormat format_;
  StatusLine status_;
};

std::string skipped_text(const std::vector<RunProgress>& runs) {
  const auto skipped = std::count_if(runs.begin(), runs.end(), [](const RunProgress& run) {
    return run.status == RunStatus::Skipped;
  });
  return skipped == 0 ? "" : join_text(" (", skipped, " finished before)");
}

int exit_code(const TestbedResult& result, const TestbedArguments& arguments) {
  const bool claims_hold = std::all_of(result.study.claims.begin(), result.study.claims.end(), [](const ClaimResult& claim) {
    return claim.verdict == Verdict::Holds;
  });
  return result.all_done() && (claims_hold || !arguments.require_claims) ? kExitDone : kExitFailed;
}

// The arguments as they were given, save that the folder is named.
std::string command_again(const TestbedArguments& arguments, const fs::path& folder) {
  std::string text = join_text("switchyard testbed ", quoted_for_shell(arguments.config), " --out ", quoted_for_shell(folder.string()));
  if (arguments.jobs > 0) text += join_text(" --jobs ", arguments.jobs);
  for (const std::string& change : arguments.overrides) text += " --set " + quoted_for_shell(change);
  if (arguments.require_claims) text += " --require-claims";
  if (arguments.format == OutputFormat::Json) text += " --json";
  return text;
}

// What did not finish, on the error stream.
void print_problems(const TestbedResult& result, const fs::path& folder, const TestbedArguments& arguments, Session& session) {
  std::vector<std::string> failed;
  bool interrupted = false;
  for (const RunProgress& run : result.runs) {
    if (run.status == RunStatus::Failed) failed.push_back(join_text("run ", run.name, " failed: ", run.error));
    interrupted = interrupted || run.status == RunStatus::Interrupted || run.status == RunStatus::Waiting;
  }
  for (const std::string& text : failed) {
    session.err << styled(session.err_screen, Style::Red, "switchyard: ") << text << "\n";
  }
  if (!failed.empty()) {
    const bool any_kept = std::any_of(result.runs.begin(), result.runs.end(), [](const RunProgress& run) {
      return run.status == RunStatus::Done || run.status == RunStatus::Skipped;
    });
    session.err << (any_kept ? "The other runs are kept. " : "") << "Repeat the same command to run what is missing in " << folder.string()
                << "\n";
  } else if (interrupted) {
    session.err << styled(session.err_screen, Style::Red, "switchyard: ") << "interrupted; go on with: "
                << command_again(arguments, folder) << "\n";
  }
}

int run(const TestbedArguments& arguments, Session& session) {
  // Its runs would take what the launcher left in the environment for their own: all the same rank, of which MPI lets one start.
  SWITCHYARD_CHECK(!started_by_mpi(), UsageError, "testbed was itself started by mpirun or srun; start it without them: it starts "
                   "its runs itself, as many at a time as there are cores");
  const TestbedConfig config = read_testbed_config(arguments.config, arguments.overrides);
  RunnerOptions options;
  options.folder = arguments.out.empty() ? fs::path("runs") / config.name : fs::path(arguments.out);
  options.command = {session.program, "train"};
  options.cores = std::max<int64_t>(1, std::thread::hardware_concurrency());
  options.jobs = arguments.jobs;
  options.stop = session.stop;
  if (arguments.format == OutputFormat::Text) session.out << testbed_header_text(config, options) << std::flush;
  ScreenSink sink(session, arguments.format);
  const TestbedResult result = run_testbed(config, options, sink);
  sink.clear();
  print_problems(result, options.folder, arguments, session);
  const bool any_result = std::any_of(result.study.arms.begin(), result.study.arms.end(), [](const ArmRow& row) {
    return !row.seeds.empty();
  });
  const fs::path report = options.folder / "report.html";
  if (any_result) write_report({options.folder}, report);
  if (arguments.format == OutputFormat::Json) {
    session.out << read_file(options.folder / "testbed.json");
  } else if (any_result) {
    session.out << "\n" << study_text(result.study, session.out_screen) << "\nreport: " << report.string()
                << skipped_text(result.runs) << "\n";
  }
  return exit_code(result, arguments);
}

}  // namespace

void add_testbed_verb(CLI::App& app, Action& chosen) {
  auto arguments = std::make_shared<TestbedArguments>();
  CLI::App* verb = app.add_subcommand(
      "testbed", "Compare ways of training: arms x seeds, several at a time, then a summary and a report.\n"
                 "Repeat the command after an interruption: finished runs are skipped, unfinished ones resumed.");
  verb->add_option("config", arguments->config, "testbed configuration (docs/testbed.md)")->required()->type_name("CONFIG");
  verb->add_option("--out", arguments->out, "folder of the runs; default runs/<name>")->type_name("DIR");
  verb->add_option("--jobs", arguments->jobs, "runs side by side; default one per core")
      ->check(CLI::Validator(CLI::Range(1, 1024)).description(""))
      ->type_name("N");
  add_set_option(*verb, arguments->overrides, "change the configuration, e.g. run.steps=50");
  verb->add_flag("--require-claims", arguments->require_claims, "exit code 1 unless every claim holds");
  add_json_flag(*verb, arguments->format, "no progress; the results as one object");
  verb->footer("Example:\n  switchyard testbed configs/testbed/demo.toml --out runs/demo");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return run(*arguments, session); };
  });
}

}  // namespace switchyard
