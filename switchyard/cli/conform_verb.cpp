#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>

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

std::string cell_of(Verdict verdict) {
  if (verdict == Verdict::Holds) return "holds";
  return verdict == Verdict::Fails ? "FAILS" : "-";
}

// One line a check, one column a subject.
std::string grid_text(const std::vector<Result>& results) {
  std::vector<std::vector<std::string>> rows = {{"", "check"}};
  const Check* last = nullptr;
  for (const Result& result : results) {
    if (result.check != last) rows.push_back({std::string(result.check->id), std::string(result.check->name)});
    last = result.check;
    // "lbl/prefix" over "prefix": the method in every heading would make the table wide.
    const std::string subject = to_string(result.subject);
    if (rows.size() == 2) rows.front().push_back(subject.substr(subject.find('/') + 1));
    rows.back().push_back(cell_of(result.finding.verdict));
  }
  return table_text(rows, std::vector<Align>(rows.front().size(), Align::Left));
}

// Subjects by message, one line each: most reasons are the same for all.
void print_messages(const std::vector<Result>& results, Verdict verdict, Session& session) {
  std::map<const Check*, std::map<std::string, std::vector<std::string>>> subjects_of;
  std::set<std::string> all_subjects;
  for (const Result& result : results) {
    all_subjects.insert(to_string(result.subject));
    if (result.finding.verdict != verdict) continue;
    subjects_of[result.check][result.finding.message].push_back(to_string(result.subject));
  }
  for (const Check& check : check_table()) {
    for (const auto& [message, subjects] : subjects_of[&check]) {
      const std::string where = subjects.size() == all_subjects.size() ? "" : join_text(" [", comma_list(subjects), "]");
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
  session.out << conform::grid_text(results);
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
      "Exit code 1 if a check fails. For a loss function in Python: python -m switchyard.conform package.module:function\n"
      "Example:\n  switchyard conform --only B7");
  verb->callback([arguments, &chosen] {
    chosen = [arguments](Session& session) {
      at::set_num_threads(1);  // thousands of steps of a few tokens: threads would only wait for each other
      const std::optional<std::string> only = arguments->only.empty() ? std::nullopt : std::optional(arguments->only);
      return print_conformance(run_suite(*conform::own_implementation(), only), arguments->format, session);
    };
  });
}

}  // namespace switchyard
