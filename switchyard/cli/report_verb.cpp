#include <filesystem>
#include <memory>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/report/report.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

struct ReportArguments {
  std::vector<std::string> runs;
  std::string out = "report.html";
};

int make_report(const ReportArguments& arguments, Session& session) {
  std::vector<fs::path> folders;
  for (const std::string& run : arguments.runs) {
    SWITCHYARD_CHECK(folder_exists(run), UsageError, "no folder ", run, "; expected a run or a testbed folder");
    folders.emplace_back(run);
  }
  write_report(folders, arguments.out);
  session.out << "report: " << arguments.out << "\n";
  return kExitDone;
}

}  // namespace

void add_report_verb(CLI::App& app, Action& chosen) {
  auto arguments = std::make_shared<ReportArguments>();
  CLI::App* verb = app.add_subcommand("report", "One self-contained HTML file about runs; a testbed folder stands for its runs");
  verb->add_option("runs", arguments->runs, "run or testbed folders")->required()->type_name("RUN...");
  verb->add_option("--out", arguments->out, "file to write")->capture_default_str()->type_name("FILE");
  verb->footer("Example:\n  switchyard report runs/demo --out demo.html");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) { return make_report(*arguments, session); };
  });
}

}  // namespace switchyard
