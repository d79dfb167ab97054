#pragma once
// HTML and XML text by simple scanning: the sources are machine-written, so no tree is built.

#include <string>
#include <string_view>

namespace switchyard {

/// Character references (`&eacute;`, `&#233;`, `&#xE9;`) to characters; unknown ones stay as they are.
[[nodiscard]] std::string decode_entities(std::string_view text);

/// Removes every `<...>` of at least one character; a '<' that is never closed stays.
[[nodiscard]] std::string drop_tags(std::string_view text);

/// A tag at text[at] == '<', if there is one up to the next '>'.
struct Tag {
  std::string_view name;  // letters and digits after '<' or '</'; empty for no tag or another kind of tag
  bool closing = false;
  size_t end = 0;  // behind the '>'
};
[[nodiscard]] Tag tag_at(std::string_view text, size_t at);

/// One space for each run of the given characters and of U+00A0.
[[nodiscard]] std::string fold_spaces(std::string_view text, std::string_view characters);

/// White space around a newline, and runs of newlines, become one newline; both ends are stripped.
[[nodiscard]] std::string fold_newlines(std::string_view text);

/// A page as text: no script, style or head; blocks and line breaks end lines.
[[nodiscard]] std::string html_to_text(std::string_view html);

}  // namespace switchyard
