#pragma once
// How configurations and files spell the values of an enum: one table for each, read in both directions.
//
//   constexpr auto kColors = std::to_array<Spelling<Color>>({{Color::Red, "red"}, {Color::DarkBlue, "dark_blue"}});
//   std::string to_string(const Color& value) { return spelling_of(kColors, value); }
//   void parse(std::string_view text, Color& value) { value = from_spelling("color", kColors, text); }

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {

template <typename Enum>
struct Spelling {
  Enum value;
  std::string_view text;
};

/// @throws UsageError for a value that the table does not have
template <typename Enum, size_t N>
[[nodiscard]] std::string spelling_of(const std::array<Spelling<Enum>, N>& table, Enum value) {
  for (const Spelling<Enum>& entry : table) {
    if (entry.value == value) return std::string(entry.text);
  }
  throw UsageError(join_text("no spelling for enum value ", static_cast<int>(value)));
}

/// `what` names the enum in messages, such as "schedule".
/// @throws ConfigError with the known names and the nearest one
template <typename Enum, size_t N>
[[nodiscard]] Enum from_spelling(std::string_view what, const std::array<Spelling<Enum>, N>& table, std::string_view text) {
  std::vector<std::string> known;
  for (const Spelling<Enum>& entry : table) {
    if (entry.text == text) return entry.value;
    known.emplace_back(entry.text);
  }
  throw ConfigError(unknown_name(what, text, known));
}

}  // namespace switchyard
