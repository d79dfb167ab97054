// groff pages (man(7), mdoc(7)) to text. Not a formatter: it keeps what a reader would read, in the order of the source.

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <functional>
#include <optional>
#include <utility>

#include "switchyard/core/text.hpp"
#include "switchyard/data/recipe_text.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!is_space(next_code_point(text, next))) break;
    at = next;
  }
  return at;
}

size_t end_of_word(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (is_space(next_code_point(text, next))) break;
    at = next;
  }
  return at;
}

struct Macro {
  std::string_view name;
  std::string_view arguments;
  std::string_view line;  // behind the dot and white space
};

std::optional<Macro> parse_macro(std::string_view line) {
  if (line.empty() || (line[0] != '.' && line[0] != '\'')) return std::nullopt;
  const size_t begin = skip_space(line, 1);
  size_t end = begin;
  while (end < line.size() && std::isalpha(static_cast<unsigned char>(line[end])) != 0) ++end;
  size_t rest = end;
  if (rest < line.size()) {
    size_t next = rest;
    if (is_space(next_code_point(line, next))) rest = next;
  }
  return Macro{line.substr(begin, end - begin), line.substr(rest), line.substr(begin)};
}

// .de, .de1, .am and .ig open a block that the formatter would not print.
bool opens_hidden_block(const Macro& macro) {
  static constexpr std::array<std::string_view, 4> kNames{"de", "de1", "ig", "am"};
  const size_t end = static_cast<size_t>(
      std::find_if(macro.line.begin(), macro.line.end(), [](unsigned char letter) { return std::isalnum(letter) == 0; }) -
      macro.line.begin());
  const bool word_goes_on =
      end < macro.line.size() && (macro.line[end] == '_' || static_cast<unsigned char>(macro.line[end]) >= 0x80);
  return !word_goes_on && is_one_of(macro.line.substr(0, end), kNames);
}

// The words of a font macro run together: `.BR ls (1)` is "ls(1)".
std::string joined_words(std::string_view arguments) {
  std::string out;
  for (size_t at = skip_space(arguments, 0); at < arguments.size(); at = skip_space(arguments, at)) {
    const size_t quote = arguments[at] == '"' ? arguments.find('"', at + 1) : kNotFound;
    const size_t end = quote != kNotFound ? quote : end_of_word(arguments, at);
    out.append(arguments.substr(quote != kNotFound ? at + 1 : at, end - (quote != kNotFound ? at + 1 : at)));
    at = quote != kNotFound ? end + 1 : end;
  }
  return out;
}

std::string first_word(std::string_view arguments) {
  const size_t quote = arguments.starts_with('"') ? arguments.find('"', 1) : kNotFound;
  const size_t end = quote != kNotFound ? quote + 1 : end_of_word(arguments, 0);
  return std::string(strip_characters(arguments.substr(0, end), "\""));
}

void add_macro(const Macro& macro, std::vector<std::string>& lines) {
  static constexpr std::array<std::string_view, 4> kHeadings{"SH", "SS", "Sh", "Ss"};
  static constexpr std::array<std::string_view, 6> kPairs{"BR", "IR", "RB", "RI", "BI", "IB"};
  static constexpr std::array<std::string_view, 23> kFonts{"B",  "I",  "SM", "SB", "Nm", "Nd", "Fl", "Ar",
                                                           "Xr", "Pa", "It", "Cm", "Dv", "Va", "Fa", "Fn",
                                                           "Ft", "Em", "Sy", "Li", "Op", "Ql", "Dq"};
  static constexpr std::array<std::string_view, 5> kBreaks{"PP", "P", "LP", "Pp", "sp"};
  if (is_one_of(macro.name, kHeadings)) {
    lines.emplace_back();
    lines.emplace_back(strip_characters(strip_space(macro.arguments), "\""));
  } else if (is_one_of(macro.name, kPairs)) {
    lines.push_back(joined_words(macro.arguments));
  } else if (is_one_of(macro.name, kFonts)) {
    std::string text(macro.arguments);
    std::erase(text, '"');
    lines.push_back(std::move(text));
  } else if (macro.name == "IP") {
    lines.push_back(first_word(macro.arguments));
  } else if (is_one_of(macro.name, kBreaks)) {
    lines.emplace_back();
  }
}

std::string join_visible_lines(std::string_view page) {
  std::vector<std::string> lines;
  bool hidden = false;
  for (size_t at = 0; at <= page.size();) {
    const size_t end = std::min(page.find('\n', at), page.size());
    const std::string_view line = page.substr(at, end - at);
    at = end + 1;
    const std::optional<Macro> macro = parse_macro(line);
    if (macro && opens_hidden_block(*macro)) {
      hidden = true;
    } else if (hidden) {
      hidden = !line.starts_with("..");
    } else if (macro) {
      add_macro(*macro, lines);
    } else {
      lines.emplace_back(line);
    }
  }
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) text.append(i == 0 ? "" : "\n").append(lines[i]);
  return text;
}

// How many bytes at the front of `rest` are an escape; its replacement goes to `out`. 0: none.
using Escape = std::function<size_t(std::string_view rest, std::string& out)>;

std::string replace_escapes(std::string_view text, const Escape& escape) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t used = text[at] == '\\' ? escape(text.substr(at), out) : 0;
    if (used == 0) out += text[at];
    at += used == 0 ? 1 : used;
  }
  return out;
}

size_t special_character(std::string_view rest, std::string& out) {
  using Pair = std::pair<std::string_view, std::string_view>;
  static constexpr std::array<Pair, 18> kCharacters{
      Pair{R"(\-)", "-"},        Pair{R"(\(aq)", "'"},      Pair{R"(\(dq)", "\""},     Pair{R"(\e)", "\\"},
      Pair{R"(\ )", " "},        Pair{R"(\~)", " "},        Pair{R"(\(em)", "\u2014"}, Pair{R"(\(en)", "\u2013"},
      Pair{R"(\(bu)", "\u2022"}, Pair{R"(\(co)", "\u00a9"}, Pair{R"(\(lq)", "\u201c"}, Pair{R"(\(rq)", "\u201d"},
      Pair{R"(\(oq)", "\u2018"}, Pair{R"(\(cq)", "\u2019"}, Pair{R"(\(ti)", "~"},      Pair{R"(\(ha)", "^"},
      Pair{R"(\(ga)", "`"},      Pair{R"(\*(Aq)", "'"}};
  for (const auto& [name, character] : kCharacters) {
    if (!rest.starts_with(name)) continue;
    out.append(character);
    return name.size();
  }
  return 0;
}

// Bytes up to and with `close`, from the front; 0 if it does not come.
size_t through(std::string_view rest, size_t from, char close) {
  const size_t end = rest.find(close, from);
  return end == kNotFound ? 0 : end + 1;
}

// Bytes up to `count` characters behind `from`, none of them a newline; 0 if there are fewer.
size_t characters_behind(std::string_view rest, size_t from, int count) {
  size_t at = from;
  for (int i = 0; i < count; ++i) {
    if (at >= rest.size() || rest[at] == '\n') return 0;
    (void)next_code_point(rest, at);
  }
  return at;
}

// Fonts, sizes, colours, motions, and what prints nothing.
size_t formatting_escape(std::string_view rest, std::string&) {
  const char kind = rest.size() > 1 ? rest[1] : '\0';
  const char next = rest.size() > 2 ? rest[2] : '\0';
  if (kind == '\0') return 0;
  if (kind == 'f') {
    size_t used = next == '[' ? through(rest, 3, ']') : next == '(' ? characters_behind(rest, 3, 2) : 0;
    return used != 0 ? used : characters_behind(rest, 2, 1);
  }
  if (kind == 's') {
    const size_t digit = next == '+' || next == '-' ? 3 : 2;
    return digit < rest.size() && std::isdigit(static_cast<unsigned char>(rest[digit])) != 0 ? digit + 1 : 0;
  }
  if (std::string_view("mMFgkn").find(kind) != kNotFound) return next == '[' ? through(rest, 3, ']') : 0;
  if (std::string_view("vhw").find(kind) != kNotFound) return next == '\'' ? through(rest, 3, '\'') : 0;
  return std::string_view("&,/|^c:%ud{}").find(kind) != kNotFound ? 2 : 0;
}

// `\[u00E9]`, four or five hex digits.
size_t unicode_escape(std::string_view rest, std::string& out) {
  if (!rest.starts_with("\\[u")) return 0;
  const size_t end = rest.find(']');
  if (end != 7 && end != 8) return 0;
  unsigned value = 0;
  const auto [behind, error] = std::from_chars(rest.data() + 3, rest.data() + end, value, 16);
  if (error != std::errc() || behind != rest.data() + end || (value >= 0xD800 && value < 0xE000)) return 0;
  append_code_point(value, out);
  return end + 1;
}

// Named characters we do not know, strings, and comments.
size_t leftover_escape(std::string_view rest, std::string&) {
  if (rest.starts_with("\\(")) return characters_behind(rest, 2, 2);
  if (rest.starts_with("\\[")) return through(rest, 2, ']');
  if (rest.starts_with("\\*[")) return through(rest, 3, ']');
  if (rest.starts_with("\\*(")) return characters_behind(rest, 3, 2);
  if (rest.starts_with("\\\"")) return std::min(rest.find('\n'), rest.size());
  return 0;
}

}  // namespace

std::string man_to_text(std::string_view page) {
  std::string text = join_visible_lines(page);
  for (const Escape& escape :
       {Escape(special_character), Escape(formatting_escape), Escape(unicode_escape), Escape(leftover_escape)}) {
    text = replace_escapes(text, escape);
  }
  std::string out;
  for (const char letter : text) {
    if (letter != '\n' || !out.ends_with("\n\n")) out += letter;
  }
  return std::string(strip_space(out));
}

}  // namespace switchyard
