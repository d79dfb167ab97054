#pragma once
// One function a verb: declares its arguments under `app` and, when the verb was chosen, what to do.

#include <functional>
#include <string>
#include <vector>

#include <CLI/App.hpp>

#include "switchyard/cli/cli.hpp"

namespace switchyard {

/// What a chosen verb does; returns an exit code or throws.
using Action = std::function<int(Session&)>;
/// Does it, and turns errors into one message and an exit code.
[[nodiscard]] int run_action(const Action& action, Session& session);

enum class OutputFormat { Text, Json };
/// Declares --set, which may be repeated.
void add_set_option(CLI::App& verb, std::vector<std::string>& overrides, const std::string& help);
/// Declares --json.
void add_json_flag(CLI::App& verb, OutputFormat& format, const std::string& help);

void add_data_verb(CLI::App& app, Action& chosen);
void add_train_verb(CLI::App& app, Action& chosen);
void add_testbed_verb(CLI::App& app, Action& chosen);
void add_report_verb(CLI::App& app, Action& chosen);
void add_export_verb(CLI::App& app, Action& chosen);
void add_conform_verb(CLI::App& app, Action& chosen);
void add_launch_verb(CLI::App& app, Action& chosen);
/// With "--" before the verb that launch is to start, so that `launch -n 2 train CONFIG --set steps=5` means what it says.
[[nodiscard]] std::vector<std::string> with_command_apart(std::vector<std::string> arguments);
void add_list_verb(CLI::App& app, Action& chosen);
void add_version_verb(CLI::App& app, Action& chosen);

}  // namespace switchyard
