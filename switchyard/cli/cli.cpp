#include "switchyard/cli/cli.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include "switchyard/cli/verbs.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr const char* kDescription =
    "Switchyard: load balancing and expert specialisation in Mixture-of-Experts language models.\n"
    "Trains small MoE models on real text and shows what a router, a balancing loss and its scope did to the experts.";

constexpr const char* kFooter =
    "First steps:\n"
    "  switchyard data build --preset mix8 --out data/mix8\n"
    "  switchyard testbed configs/testbed/demo.toml\n"
    "Each verb has its own help: switchyard train --help\n"
    "Exit codes: 0 done, 1 failed (or stopped by a signal, with the work saved), 2 wrong use.";

// Option names of a verb as the user types them: "--set", "--json".
std::vector<std::string> long_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> verb_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) names.push_back(verb->get_name());
  return names;
}

const CLI::App& deepest_chosen(const CLI::App& app) {
  const CLI::App* chosen = &app;
  while (!chosen->get_subcommands().empty()) chosen = chosen->get_subcommands().front();
  return *chosen;
}

std::string full_name(const CLI::App& app) {
  return app.get_parent() == nullptr ? app.get_name() : full_name(*app.get_parent()) + " " + app.get_name();
}

// Where a verb is expected, and another word stands; kNotFound elsewhere.
size_t place_of_unknown_verb(const CLI::App& app, const std::vector<std::string>& arguments) {
  const CLI::App& verb = deepest_chosen(app);
  if (verb.get_require_subcommand_min() == 0 || !verb.get_subcommands().empty()) return kNotFound;
  const std::string name = full_name(verb);
  const auto depth = static_cast<size_t>(std::count(name.begin(), name.end(), ' '));
  size_t words = 0;  // options such as --help may stand before them
  for (size_t place = 0; place < arguments.size(); ++place) {
    if (!arguments[place].starts_with("-") && words++ == depth) return place;
  }
  return kNotFound;
}

// For `--set a=1 b=2`.
std::string hint_at_set(const std::vector<std::string>& arguments, const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), "--set") == known.end()) return "";
  for (size_t i = 2; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    const bool is_left_over = !word.starts_with("-") && word.find('=') != kNotFound && !arguments[i - 1].starts_with("-");
    if (is_left_over) return join_text(word, " was not expected; --set takes one KEY=VALUE, so repeat it: --set ", quoted_for_shell(word));
  }
  return "";
}

// CLI11 names what it did not expect; this adds what it would have accepted.
std::string explain(const CLI::App& app, const CLI::ParseError& error, const std::vector<std::string>& arguments) {
  const CLI::App& verb = deepest_chosen(app);
  const auto is_verb_missing = [&] { return verb.get_require_subcommand_min() > 0 && verb.get_subcommands().empty(); };
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr || is_verb_missing()) {
    const std::vector<std::string> known = long_options(verb);
    for (const std::string& argument : arguments) {
      const std::string name = argument.substr(0, argument.find('='));
      if (name.rfind("--", 0) == 0 && std::find(known.begin(), known.end(), name) == known.end()) {
        return unknown_name("option", name, known);
      }
    }
    if (const std::string hint = hint_at_set(arguments, known); !hint.empty()) return hint;
    if (is_verb_missing()) {
      const size_t place = place_of_unknown_verb(app, arguments);
      if (place == kNotFound) return "a verb is missing; known: " + comma_list(verb_names(verb));
      return unknown_name("verb", arguments[place], verb_names(verb));
    }
  }
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    for (const CLI::Option* option : verb.get_options()) {
      if (option->get_required() && option->empty()) {
        const std::string positional = option->get_name(true);
        return join_text("no ", positional.empty() ? option->get_name(false, true) : positional, " given; expected ", option->get_description());
      }
    }
  }
  return error.what();
}

// That of a shell variable which is not set: taken for an option that was not given, `--resume "$RUN"` would start a new run.
void check_no_empty_text(const CLI::App& verb) {
  for (const CLI::Option* option : verb.get_options()) {
    for (const std::string& given : option->results()) {
      if (given.empty()) throw CLI::ValidationError(option->get_name(), "an empty text was given; expected " + option->get_description());
    }
  }
}

int report_error(Session& session, const std::string& message, int code) {
  session.err << styled(session.err_screen, Style::Red, "switchyard: ") << message << std::endl;
  return code;
}

constexpr const char* kNoMemory =
    "out of memory: use a smaller model, fewer sequences per step, or execution.recompute = \"layers\"";

// libtorch has no type of its own for memory that the system does not give; these are its allocator's words.
bool is_no_memory(const std::string& text) {
  return text.find("can't allocate memory") != std::string::npos || text.find("not enough memory") != std::string::npos;
}

// oneDNN refuses shapes when it describes a primitive; one that it described it cannot create when no memory is left for its code.
bool seems_no_memory(const std::string& text) { return text == "could not create a primitive"; }

int report_unexpected(Session& session, const std::string& text) {
  if (is_no_memory(text)) return report_error(session, kNoMemory, kExitFailed);
  if (seems_no_memory(text)) return report_error(session, join_text(kNoMemory, " (oneDNN says: ", text, ")"), kExitFailed);
  return report_error(session, "unexpected error, please report it: " + text, kExitFailed);
}

}  // namespace

int run_action(const Action& action, Session& session) {
  try {
    const int code = action(session);
    session.out.flush();
    if (!session.out) return report_error(session, "the output could not be written (disk full or pipe closed)", kExitFailed);
    return code;
  } catch (const UsageError& error) {
    return report_error(session, error.what(), kExitWrongUse);
  } catch (const Error& error) {
    return report_error(session, error.what(), kExitFailed);
  } catch (const std::bad_alloc&) {
    return report_error(session, kNoMemory, kExitFailed);
  } catch (const c10::Error& error) {
    return report_unexpected(session, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return report_unexpected(session, error.what());
  }
}

void add_set_option(CLI::App& verb, std::vector<std::string>& overrides, const std::string& help) {
  verb.add_option("--set", overrides, help + "; may be repeated")
      ->option_text("KEY=VALUE")  // else CLI11 adds "...", as if one --set took several
      ->take_all()
      ->allow_extra_args(false);
}

void add_json_flag(CLI::App& verb, OutputFormat& format, const std::string& help) {
  verb.add_flag_callback("--json", [&format] { format = OutputFormat::Json; }, help);
}

int run_cli(const std::vector<std::string>& arguments, Session& session) {
  CLI::App app(kDescription, "switchyard");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  app.get_formatter()->label("SUBCOMMAND", "VERB");
  Action chosen;
  add_data_verb(app, chosen);
  add_train_verb(app, chosen);
  add_launch_verb(app, chosen);
  add_testbed_verb(app, chosen);
  add_report_verb(app, chosen);
  add_export_verb(app, chosen);
  add_conform_verb(app, chosen);
  add_list_verb(app, chosen);
  add_version_verb(app, chosen);
  for (CLI::App* verb : app.get_subcommands([](const CLI::App*) { return true; })) verb->group("Verbs");
  try {
    const std::vector<std::string> words = with_command_apart(arguments);
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));  // CLI11 takes them from the back
    check_no_empty_text(deepest_chosen(app));
  } catch (const CLI::CallForHelp&) {
    if (const size_t place = place_of_unknown_verb(app, arguments); place != kNotFound) {
      const std::vector<std::string> verbs = verb_names(deepest_chosen(app));
      return report_error(session, unknown_name("verb", arguments[place], verbs), kExitWrongUse);
    }
    chosen = [&app](Session& told) {
      told.out << app.help();  // that of the deepest verb given
      return kExitDone;
    };
  } catch (const CLI::ParseError& error) {
    const CLI::App& verb = deepest_chosen(app);
    return report_error(session, join_text(explain(app, error, arguments), "\nSee: ", full_name(verb), " --help"), kExitWrongUse);
  }
  return run_action(chosen, session);
}

}  // namespace switchyard
