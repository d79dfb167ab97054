#pragma once
// UTF-8 and white space, as the extraction recipes need them.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace switchyard {

/// Byte offset of the first byte that is not part of well-formed UTF-8 (overlong forms, surrogates and code points above
/// U+10FFFF are not); nothing if all is well.
[[nodiscard]] std::optional<size_t> find_invalid_utf8(std::string_view text);

/// The text itself if it is UTF-8, else its bytes read as Latin-1.
[[nodiscard]] std::string utf8_or_latin1(std::string bytes);

/// Each maximal ill-formed part becomes one U+FFFD (Unicode 15, section 3.9, "substitution of maximal subparts").
[[nodiscard]] std::string replace_invalid_utf8(std::string_view text);

/// Reads the code point at `at` of well-formed text and moves `at` behind it.
[[nodiscard]] char32_t next_code_point(std::string_view text, size_t& at);

/// Where the character of well-formed text begins that the byte at `at` belongs to: no cut there parts a character.
[[nodiscard]] size_t character_begin(std::string_view text, size_t at);

void append_code_point(char32_t point, std::string& out);

/// White space as Unicode's White_Space property has it, and the separators U+001C..U+001F.
[[nodiscard]] bool is_space(char32_t point);

/// Without white space at both ends.
[[nodiscard]] std::string_view strip_space(std::string_view text);

}  // namespace switchyard
