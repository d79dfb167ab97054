#include "switchyard/data/html.hpp"

#include <libxml/HTMLparser.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "switchyard/core/text.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

constexpr std::string_view kNoBreakSpace = "\xC2\xA0";

bool is_name_character(char letter) { return std::isalnum(static_cast<unsigned char>(letter)) != 0; }

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
  return out;
}

// What HTML5 prescribes for numeric references to C1 controls: Windows-1252.
char32_t windows_1252(char32_t point) {
  static constexpr std::array<char32_t, 32> kPoints{0x20AC, 0x81,   0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021,
                                                    0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,   0x017D, 0x8F,
                                                    0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                                    0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D,   0x017E, 0x0178};
  return point >= 0x80 && point < 0xA0 ? kPoints[point - 0x80] : point;
}

// The code point of "#233" or "#xE9"; 0 if it is none.
char32_t numeric_reference(std::string_view body) {
  const bool hex = body.size() > 1 && (body[1] == 'x' || body[1] == 'X');
  const std::string_view digits = body.substr(hex ? 2 : 1);
  unsigned value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, hex ? 16 : 10);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) return 0;
  if (value == 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0xFFFD;
  return windows_1252(value);
}

char32_t reference(std::string_view body) {
  if (body.starts_with('#')) return numeric_reference(body);
  if (body == "apos") return '\'';  // XML and HTML5; libxml2's table is HTML4
  const htmlEntityDesc* entity = htmlEntityLookup(reinterpret_cast<const xmlChar*>(std::string(body).c_str()));
  return entity == nullptr ? 0 : entity->value;
}

// Position behind `</name>` of an element that begins at `at`, or kNotFound.
size_t end_of_element(std::string_view folded, size_t at, std::string_view name) {
  const std::string closing = "</" + std::string(name) + ">";
  const size_t found = folded.find(closing, at);
  return found == kNotFound ? kNotFound : found + closing.size();
}

// True where a tag ends a line of text.
bool ends_line(const Tag& tag, std::string_view html) {
  const std::string name = lower(tag.name);
  if (!tag.closing) return name.starts_with("br");
  if (tag.name.data() + tag.name.size() != html.data() + tag.end - 1) return false;  // "</p >"
  static constexpr std::array<std::string_view, 8> kBlocks{"p", "div", "li", "tr", "dt", "dd", "pre", "blockquote"};
  const bool heading = name.size() == 2 && name[0] == 'h' && std::isdigit(static_cast<unsigned char>(name[1])) != 0;
  return heading || std::find(kBlocks.begin(), kBlocks.end(), name) != kBlocks.end();
}

std::string drop_elements(std::string_view html) {
  static constexpr std::array<std::string_view, 3> kDropped{"script", "style", "head"};
  const std::string folded = lower(html);
  std::string out;
  for (size_t at = 0; at < html.size();) {
    if (html[at] == '<') {
      const Tag tag = tag_at(folded, at);
      const bool dropped = !tag.closing && std::find(kDropped.begin(), kDropped.end(), tag.name) != kDropped.end();
      const size_t end = dropped ? end_of_element(folded, at, tag.name) : kNotFound;
      if (end != kNotFound) {
        at = end;
        continue;
      }
    }
    out += html[at++];
  }
  return out;
}

}  // namespace

std::string decode_entities(std::string_view text) {
  constexpr size_t kLongestName = 32;
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    if (text[at] == '&') {
      const size_t end = text.find(';', at);
      if (end != kNotFound && end - at <= kLongestName && end > at + 1) {
        const char32_t point = reference(text.substr(at + 1, end - at - 1));
        if (point != 0) {
          append_code_point(point, out);
          at = end + 1;
          continue;
        }
      }
    }
    out += text[at++];
  }
  return out;
}

std::string drop_tags(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    if (text[at] == '<') {
      const size_t end = text.find('>', at);
      if (end != kNotFound && end > at + 1) {
        at = end + 1;
        continue;
      }
    }
    out += text[at++];
  }
  return out;
}

Tag tag_at(std::string_view text, size_t at) {
  const size_t end = text.find('>', at);
  if (end == kNotFound) return {};
  const bool closing = at + 1 < text.size() && text[at + 1] == '/';
  const size_t begin = at + (closing ? 2 : 1);
  size_t behind = begin;
  while (behind < end && is_name_character(text[behind])) ++behind;
  return {text.substr(begin, behind - begin), closing, end + 1};
}

std::string fold_spaces(std::string_view text, std::string_view characters) {
  std::string out;
  out.reserve(text.size());
  bool in_run = false;
  for (size_t at = 0; at < text.size();) {
    const bool no_break = text.substr(at).starts_with(kNoBreakSpace);
    const bool folded = no_break || characters.find(text[at]) != kNotFound;
    if (!folded) {
      out += text[at];
    } else if (!in_run) {
      out += ' ';
    }
    in_run = folded;
    at += no_break ? kNoBreakSpace.size() : 1;
  }
  return out;
}

std::string fold_newlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  text = strip_space(text);
  for (size_t at = 0; at < text.size();) {
    const size_t run = at;
    bool newline = false;
    size_t next = at;
    while (next < text.size()) {
      const char32_t point = next_code_point(text, next);
      if (!is_space(point)) break;
      newline = newline || point == '\n';
      at = next;
    }
    if (at > run) {
      if (newline) {
        out += '\n';
      } else {
        out.append(text.substr(run, at - run));
      }
    } else {
      out.append(text.substr(at, next - at));
      at = next;
    }
  }
  return out;
}

std::string html_to_text(std::string_view html) {
  const std::string kept = drop_elements(html);
  std::string out;
  for (size_t at = 0; at < kept.size();) {
    if (kept[at] == '<') {
      const Tag tag = tag_at(kept, at);
      if (tag.end > at + 2) {
        if (!tag.name.empty() && ends_line(tag, kept)) out += '\n';
        at = tag.end;
        continue;
      }
    }
    out += kept[at++];
  }
  return fold_newlines(fold_spaces(decode_entities(out), " \t"));
}

}  // namespace switchyard
