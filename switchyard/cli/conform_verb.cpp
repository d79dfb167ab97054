#include <algorithm>
#include <csignal>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

#include "switchyard/cli/conform_verb.hpp"
#include "switchyard/conform/own.hpp"
#include "switchyard/conform/suite.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard::conform {
namespace {

int64_t number_of(const std::vector<Result>& results, Verdict verdict) {
  return std::count_if(results.begin(), results.end(),
                       [verdict](const Result& result) { return result.finding.verdict == verdict; });
}

nlohmann::ordered_json json_of(const std::vector<Result>& results) {
  nlohmann::ordered_json items = nlohmann::ordered_json::array();
  for (const Result& result : results) {
    items.push_back({{"id", result.check->id},
                     {"check", result.check->name},
                     {"subject", to_string(result.subject)},
                     {"verdict", to_string(result.finding.verdict)},
                     {"message", result.finding.message},
                     {"invariant", result.check->invariant},
                     {"bug", result.check->bug}});
  }
  return items;
}

// FAILS where any of them does, else holds where any of them does.
std::string cell_of(const std::vector<Verdict>& verdicts) {
  const auto any = [&verdicts](Verdict verdict) { return std::count(verdicts.begin(), verdicts.end(), verdict) > 0; };
  if (any(Verdict::Fails)) return "FAILS";
  return any(Verdict::Holds) ? "holds" : "-";
}

using HeadingOf = std::function<std::string(const Subject&)>;

// One line a check, one column a heading; subjects with an empty heading are left out.
std::string grid_text(const std::vector<Result>& results, const HeadingOf& heading_of) {
  std::vector<std::string> headings;
  std::vector<const Check*> checks;
  std::map<std::pair<const Check*, std::string>, std::vector<Verdict>> verdicts_of;
  for (const Result& result : results) {
    const std::string heading = heading_of(result.subject);
    if (heading.empty()) continue;
    if (std::find(headings.begin(), headings.end(), heading) == headings.end()) headings.push_back(heading);
    if (checks.empty() || checks.back() != result.check) checks.push_back(result.check);
    verdicts_of[{result.check, heading}].push_back(result.finding.verdict);
  }
  if (headings.empty()) return "";
  std::vector<std::vector<std::string>> rows = {{"", "check"}};
  rows.front().insert(rows.front().end(), headings.begin(), headings.end());
  for (const Check* check : checks) {
    rows.push_back({std::string(check->id), std::string(check->name)});
    for (const std::string& heading : headings) rows.back().push_back(cell_of(verdicts_of[{check, heading}]));
  }
  return table_text(rows, std::vector<Align>(rows.front().size(), Align::Left));
}

// "[a, b]", "[all but c]" where that is shorter, or nothing for all.
std::string subjects_text(const std::vector<std::string>& subjects, const std::vector<std::string>& all) {
  if (subjects.size() == all.size()) return "";
  if (2 * subjects.size() <= all.size()) return join_text(" [", comma_list(subjects), "]");
  std::vector<std::string> others;
  std::copy_if(all.begin(), all.end(), std::back_inserter(others), [&subjects](const std::string& subject) {
    return std::find(subjects.begin(), subjects.end(), subject) == subjects.end();
  });
  return join_text(" [all but ", comma_list(others), "]");
}

// Subjects by message, one line each: most reasons are the same for all.
void print_messages(const std::vector<Result>& results, Verdict verdict, Session& session) {
  std::map<const Check*, std::map<std::string, std::vector<std::string>>> subjects_of;
  std::vector<std::string> all_subjects;
  for (const Result& result : results) {
    if (result.check == results.front().check) all_subjects.push_back(to_string(result.subject));
    if (result.finding.verdict != verdict) continue;
    subjects_of[result.check][result.finding.message].push_back(to_string(result.subject));
  }
  for (const Check& check : check_table()) {
    for (const auto& [message, subjects] : subjects_of[&check]) {
      const std::string where = subjects_text(subjects, all_subjects);
      session.out << "  " << check.id << " " << check.name << ": " << message << where << "\n";
      if (verdict == Verdict::Fails)
        session.out << "      must hold: " << check.invariant << ". Seen in: " << check.bug << "\n";
    }
  }
}

}  // namespace
}  // namespace switchyard::conform

namespace switchyard {

int print_conformance(const std::vector<conform::Result>& results, OutputFormat format, Session& session) {
  using enum conform::Verdict;
  const int64_t failed = conform::number_of(results, Fails);
  if (format == OutputFormat::Json) {
    session.out << conform::json_of(results).dump(2) << "\n";
    return failed == 0 ? kExitDone : kExitFailed;
  }
  const auto scope_of_lbl = [](const conform::Subject& subject) {
    return subject.method == "lbl" ? to_string(subject.scope) : std::string();
  };
  const auto method = [](const conform::Subject& subject) { return subject.method == "lbl" ? std::string() : subject.method; };
  const std::string by_scope = conform::grid_text(results, scope_of_lbl);
  const std::string by_method = conform::grid_text(results, method);
  if (!by_scope.empty()) session.out << "Load-balancing loss, by scope\n" << by_scope;
  if (!by_scope.empty() && !by_method.empty()) session.out << "\n";
  if (!by_method.empty())
    session.out
        << "Other methods (losses over optimizer_batch and micro_batch; mixed_lbl is the first plus 1 % of the second)\n"
        << by_method;
  if (failed > 0) {
    session.out << "\n" << styled(session.out_screen, Style::Red, "Fails") << "\n";
    conform::print_messages(results, Fails, session);
  }
  if (conform::number_of(results, DoesNotApply) > 0) {
    session.out << "\nDoes not apply (-)\n";
    conform::print_messages(results, DoesNotApply, session);
  }
  session.out << "\n"
              << conform::number_of(results, Holds) << " hold, " << failed << " fail, "
              << conform::number_of(results, DoesNotApply) << " do not apply\n";
  return failed == 0 ? kExitDone : kExitFailed;
}

void add_conform_verb(CLI::App& app, Action& chosen) {
  struct Arguments {
    std::string only;
    OutputFormat format = OutputFormat::Text;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* verb =
      app.add_subcommand("conform", "Check our balancing against 28 invariants, each a bug that some project shipped");
  verb->add_option("--only", arguments->only, "one invariant: B1 to B28");
  add_json_flag(*verb, arguments->format, "an array of objects: id, check, subject, verdict, message, invariant, bug");
  verb->footer(
      "Exit code 1 if a check fails. For a loss function in Python, from the root of a checkout:\n"
      "  PYTHONPATH=python .venv/bin/python -m switchyard.conform package.module:function\n"
      "Example:\n  switchyard conform --only B7");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) {
      for (const int number : {SIGINT, SIGTERM, SIGUSR1}) std::signal(number, SIG_DFL);  // there is nothing to save
      at::set_num_threads(1);  // thousands of steps of a few tokens: threads would only wait for each other
      const std::optional<std::string> only = arguments->only.empty() ? std::nullopt : std::optional(arguments->only);
      return print_conformance(run_suite(*conform::own_implementation(), only), arguments->format, session);
    };
  });
}

}  // namespace switchyard
