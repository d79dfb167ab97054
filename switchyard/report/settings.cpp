#include "switchyard/report/settings.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr std::string_view kTerms = "balance.terms[";

std::string_view without_blanks(std::string_view text) { return strip_characters(text, " \t\r"); }

std::string unquoted(const std::string& value) {
  return value.size() >= 2 && value.front() == '"' && value.back() == '"' ? value.substr(1, value.size() - 2) : value;
}

std::string text_of(const Settings& settings, const std::string& key) {
  const auto found = settings.find(key);
  return found == settings.end() ? "" : unquoted(found->second);
}

/// 0 where it is missing or no number.
template <typename Number = double>
Number number_of(const Settings& settings, const std::string& key) {
  const std::string text = text_of(settings, key);
  Number number{};
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

/// Steps of a loss as a log counts them.
std::string when(const Settings& settings, const std::string& prefix) {
  const auto from = number_of<int64_t>(settings, prefix + "from_step"), to = number_of<int64_t>(settings, prefix + "to_step");
  std::string text;
  if (from > 0) text += join_text(" after step ", from);
  if (to > 0) text += join_text(" up to step ", to);
  return text;
}

}  // namespace

Settings read_settings(std::string_view config_toml) {
  Settings settings;
  std::map<std::string, int> tables;
  std::string prefix;
  while (!config_toml.empty()) {
    const size_t end = std::min(config_toml.find('\n'), config_toml.size());
    const std::string_view line = without_blanks(config_toml.substr(0, end));
    config_toml.remove_prefix(std::min(end + 1, config_toml.size()));
    if (line.starts_with("[[") && line.ends_with("]]")) {
      const std::string name(line.substr(2, line.size() - 4));
      prefix = join_text(name, "[", tables[name]++, "].");
    } else if (line.starts_with('[') && line.ends_with(']')) {
      prefix = std::string(line.substr(1, line.size() - 2)) + ".";
    } else if (const size_t equals = line.find('='); equals != kNotFound && !line.starts_with('#')) {
      settings[prefix + std::string(without_blanks(line.substr(0, equals)))] = without_blanks(line.substr(equals + 1));
    }
  }
  return settings;
}

bool decides_training(std::string_view key) {
  constexpr std::array<std::string_view, 4> kNames = {"name", "arm", "seed", "data.path"};
  constexpr std::array<std::string_view, 3> kTables = {"checkpoint.", "evaluation.", "execution."};
  return std::ranges::find(kNames, key) == kNames.end() &&
         std::ranges::none_of(kTables, [key](std::string_view section) { return key.starts_with(section); });
}

std::vector<std::string> differing_keys(const std::vector<const Settings*>& runs) {
  std::map<std::string, std::set<std::string>> values;
  for (const Settings* run : runs) {
    for (const auto& [key, value] : *run) values[key].insert(value);
  }
  std::vector<std::string> keys;
  for (auto& [key, found] : values) {
    const bool of_few = key.starts_with(kTerms) && std::ranges::any_of(runs, [&key](const Settings* run) {
      return run->contains("balance.method") && !run->contains(key);
    });
    if (decides_training(key) && (found.size() > 1 || of_few)) keys.push_back(key);
  }
  return keys;
}

bool decides_beginning(std::string_view key) {
  return decides_training(key) && (key.starts_with("data.") || (key.starts_with("model.") && !key.starts_with("model.router.")));
}

std::vector<std::string> beginning_keys_of_some(const std::vector<const Settings*>& runs) {
  std::map<std::string, std::size_t> runs_with;
  for (const Settings* run : runs) {
    for (const auto& [key, value] : *run) ++runs_with[key];
  }
  std::vector<std::string> keys;
  for (const auto& [key, count] : runs_with) {
    if (decides_beginning(key) && count < runs.size()) keys.push_back(key);
  }
  return keys;
}

std::string value_of(const Settings& settings, const std::string& key) {
  const std::string text = text_of(settings, key);
  return text.empty() ? "-" : text;
}

std::string balancing_text(const StartRecord& start, const Settings& settings) {
  std::vector<std::string> parts;
  if (start.scope != "none") {
    parts.push_back(join_text(start.method, " ", start.coefficient, " over ", start.scope, when(settings, "balance.")));
  }
  for (int64_t term = 0;; ++term) {
    const std::string prefix = join_text(kTerms, term, "].");
    if (!settings.contains(prefix + "method")) break;
    parts.push_back(join_text(text_of(settings, prefix + "method"), " ", number_of(settings, prefix + "coefficient"), " over ",
                              text_of(settings, prefix + "scope"), when(settings, prefix)));
  }
  constexpr std::array<std::pair<const char*, const char*>, 3> kOthers = {{{"balance.z_coefficient", "z-loss "},
                                                                           {"balance.simbal_coefficient", "SimBal "},
                                                                           {"balance.orthogonality_coefficient", "orthogonality "}}};
  for (const auto& [key, name] : kOthers) {
    if (number_of(settings, key) != 0.0) parts.push_back(join_text(name, number_of(settings, key)));
  }
  const std::string rule = text_of(settings, "balance.selection.rule");
  if (!rule.empty() && rule != "none") parts.push_back("choice by " + rule);
  return parts.empty() ? "no balancing" : joined(parts, "; ", std::identity());
}

}  // namespace switchyard
