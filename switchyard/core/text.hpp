#pragma once
// Small text helpers that messages need.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace switchyard {

inline constexpr size_t kNotFound = std::string_view::npos;

/// The candidate with the smallest edit distance to `given`; empty if there is none within a third of its length (at least 2).
[[nodiscard]] std::string nearest_name(std::string_view given, std::span<const std::string> candidates);

/// The texts of the items, `separator` between them; empty ones at the beginning leave no separator.
/// @param to_text  what a std::string can be added to, of an item
template <class Range, class ToText>
[[nodiscard]] std::string joined(const Range& items, std::string_view separator, ToText to_text) {
  std::string text;
  for (const auto& item : items) {
    if (!text.empty()) text += separator;
    text += to_text(item);
  }
  return text;
}

/// "a, b, c".
[[nodiscard]] std::string comma_list(std::span<const std::string> items);

/// Without the given ASCII characters at both ends.
[[nodiscard]] std::string_view strip_characters(std::string_view text, std::string_view characters);

/// "1,234,567" with the separator ",".
[[nodiscard]] std::string grouped_digits(int64_t number, std::string_view separator);

/// Of a number in fixed point: "0.00" for "-0.00", whose sign the digits do not show.
[[nodiscard]] std::string without_sign_of_zero(std::string number);

/// What a library says of an error, without the name it gives the error in front: "[json.exception.parse_error.101] ".
[[nodiscard]] std::string_view without_error_name(std::string_view text);

/// With control characters as TOML escapes them, \u001B: they would end a message, or steer a terminal.
[[nodiscard]] std::string printable(std::string_view text);

/// As a word of a shell's command line: in single quotes unless every letter stands for itself.
[[nodiscard]] std::string quoted_for_shell(std::string_view text);

/// Whether `name` is one of them.
[[nodiscard]] bool is_one_of(std::string_view name, std::span<const std::string_view> names);

/// The message for an unknown name: "unknown router 'topkk' (did you mean 'top_k'?); known: top_k, random".
[[nodiscard]] std::string unknown_name(std::string_view what, std::string_view given, std::span<const std::string> known);

}  // namespace switchyard
