#include "switchyard/core/text.hpp"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Edit distance with swaps of neighbours (optimal string alignment): "tpo_k" is one step from "top_k".
size_t edit_distance(std::string_view left, std::string_view right) {
  std::vector<size_t> before_last(right.size() + 1);
  std::vector<size_t> last(right.size() + 1);
  std::vector<size_t> current(right.size() + 1);
  for (size_t j = 0; j <= right.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= left.size(); ++i) {
    current[0] = i;
    for (size_t j = 1; j <= right.size(); ++j) {
      const size_t replace = last[j - 1] + (left[i - 1] == right[j - 1] ? 0 : 1);
      current[j] = std::min({last[j] + 1, current[j - 1] + 1, replace});
      const bool swapped = i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1];
      if (swapped) current[j] = std::min(current[j], before_last[j - 2] + 1);
    }
    std::swap(before_last, last);
    std::swap(last, current);
  }
  return last[right.size()];
}

}  // namespace

std::string nearest_name(std::string_view given, std::span<const std::string> candidates) {
  const size_t limit = std::max<size_t>(2, given.size() / 3);
  std::string nearest;
  size_t smallest = limit + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(given, candidate);
    // A distance as long as the longer name means that nothing of it was kept.
    if (distance < smallest && distance < std::max(given.size(), candidate.size())) {
      smallest = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string comma_list(std::span<const std::string> items) {
  return joined(items, ", ", std::identity());
}

std::string_view strip_characters(std::string_view text, std::string_view characters) {
  const size_t begin = text.find_first_not_of(characters);
  if (begin == kNotFound) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

std::string grouped_digits(int64_t number, std::string_view separator) {
  std::string digits = std::to_string(number);
  const size_t first = number < 0 ? 1 : 0;
  for (size_t at = digits.size(); at > first + 3;) {
    at -= 3;
    digits.insert(at, separator);
  }
  return digits;
}

std::string without_sign_of_zero(std::string number) {
  if (number.starts_with('-') && number.find_first_of("123456789") == kNotFound) number.erase(0, 1);
  return number;
}

std::string_view without_error_name(std::string_view text) {
  const size_t end = text.starts_with("[") ? text.find("] ") : kNotFound;
  return end == kNotFound ? text : text.substr(end + 2);
}

std::string printable(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string result;
  for (const char letter : text) {
    const auto code = static_cast<unsigned char>(letter);
    if (code >= 0x20 && code != 0x7F) {
      result += letter;
    } else {
      result += std::string("\\u00") + kDigits[code >> 4] + kDigits[code & 15];
    }
  }
  return result;
}

std::string quoted_for_shell(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,@%+";
  if (!text.empty() && text.find_first_not_of(kPlain) == kNotFound) return std::string(text);
  std::string quoted = "'";
  for (const char letter : text) quoted += letter == '\'' ? std::string("'\\''") : std::string(1, letter);
  return quoted + "'";
}

bool is_one_of(std::string_view name, std::span<const std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string unknown_name(std::string_view what, std::string_view given, std::span<const std::string> known) {
  const std::string nearest = nearest_name(given, known);
  const std::string hint = nearest.empty() ? "" : join_text(" (did you mean '", nearest, "'?)");
  return join_text("unknown ", what, " '", printable(given), "'", hint, "; known: ", comma_list(known));
}

}  // namespace switchyard
