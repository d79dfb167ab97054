#include "switchyard/data/recipe_text.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstring>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/compression.hpp"
#include "switchyard/data/html.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

bool is_paragraph(std::string_view name) {
  if (name == "p" || name == "pre") return true;
  return name.size() == 2 && name[0] == 'h' && name[1] >= '1' && name[1] <= '6';
}

// True where an OSIS or ThML tag stands for the end of a line.
bool breaks_line(std::string_view text, size_t at, const Tag& tag) {
  static constexpr std::array<std::string_view, 6> kOpening{"title", "div", "milestone", "lb", "p", "l"};
  static constexpr std::array<std::string_view, 5> kClosing{"p", "title", "verse", "div", "l"};
  const std::string_view whole = text.substr(at, tag.end - at);
  if (tag.closing) return is_one_of(tag.name, kClosing) && whole.size() == tag.name.size() + 3;
  return is_one_of(tag.name, kOpening) || whole == "<br>" || whole == "<br/>" || whole == "<br />";
}

std::string drop_notes(std::string_view text) {
  constexpr std::string_view kEnd = "</note>";
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    const size_t begin = text.find("<note", at);
    const size_t end = begin == kNotFound ? kNotFound : text.find(kEnd, begin);
    if (end == kNotFound) break;
    const char next = text[begin + 5];
    const bool longer_name = std::isalnum(static_cast<unsigned char>(next)) != 0 || next == '_';
    const size_t behind = longer_name ? begin + 5 : end + kEnd.size();
    out.append(text.substr(at, (longer_name ? behind : begin) - at));
    at = behind;
  }
  return out.append(text.substr(at));
}

uint32_t word_at(std::string_view bytes, size_t at) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + at, sizeof word);  // little-endian, as the machines we run on
  return word;
}

}  // namespace

std::vector<std::string> help_paragraphs(std::string_view html) {
  const size_t begin = html.find("id=\"DisplayArea\"");
  if (begin == kNotFound) return {};
  const size_t end = html.find("<div id=\"SearchFrame\"");
  const std::string_view area = html.substr(begin, end == kNotFound ? kNotFound : std::max(begin, end) - begin);
  std::vector<std::string> paragraphs;
  for (size_t at = area.find('<'); at != kNotFound; at = area.find('<', at)) {
    const Tag tag = tag_at(area, at);
    const size_t close =
        tag.closing || !is_paragraph(tag.name) ? kNotFound : area.find("</" + std::string(tag.name) + ">", tag.end);
    if (close == kNotFound) {
      ++at;
      continue;
    }
    const std::string text = fold_spaces(decode_entities(drop_tags(area.substr(tag.end, close - tag.end))), " \t\r\n");
    if (const std::string_view stripped = strip_space(text); !stripped.empty()) paragraphs.emplace_back(stripped);
    at = close + tag.name.size() + 3;
  }
  return paragraphs;
}

std::string keep_non_ascii_lines(std::string_view text) {
  std::string out;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    size_t characters = 0;
    size_t foreign = 0;
    for (size_t i = 0; i < line.size(); ++characters) foreign += next_code_point(line, i) >= 0x80 ? 1 : 0;
    if (strip_space(line).empty() || foreign * 3 >= characters) out.append(line) += '\n';
    at = end + 1;
  }
  return std::string(strip_space(out));
}

std::string sword_to_text(std::string_view block) {
  const std::string text = drop_notes(replace_invalid_utf8(block));
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const char letter = text[at];
    if (letter == '<') {
      const Tag tag = tag_at(text, at);
      if (tag.end > at + 2) {
        if (breaks_line(text, at, tag)) out += '\n';
        at = tag.end;
        continue;
      }
    }
    out += letter == '\r' || letter == '\0' ? '\n' : letter;
    ++at;
  }
  std::string folded;
  for (const char letter : decode_entities(out)) {
    const char kept = letter == '\t' ? ' ' : letter;
    if (kept != ' ' || folded.empty() || folded.back() != ' ') folded += kept;
  }
  return fold_newlines(folded);
}

std::vector<std::string> sword_documents(std::string_view index, std::string_view blocks) {
  constexpr size_t kEntry = 12;
  std::vector<std::string> documents;
  for (size_t at = 0; at + kEntry <= index.size(); at += kEntry) {
    const size_t offset = word_at(index, at);
    const size_t size = word_at(index, at + 4);
    if (size == 0) continue;
    SWITCHYARD_CHECK(offset <= blocks.size() && size <= blocks.size() - offset, DataError, "SWORD index entry ", at / kEntry,
                     " points at bytes ", offset, "..", offset + size, " of ", blocks.size());
    documents.push_back(sword_to_text(inflate_bytes(blocks.substr(offset, size))));
  }
  return documents;
}

std::vector<std::string> fasta_sequences(std::string_view fasta) {
  std::vector<std::string> sequences;
  for (size_t at = 0; at < fasta.size();) {
    const size_t end = std::min(fasta.find("\n>", at), fasta.size());
    const std::string_view record = fasta.substr(at, end - at);
    if (const size_t header = record.find('\n'); header != kNotFound) {
      std::string bases(record.substr(header + 1));
      std::erase_if(bases, [](char letter) { return letter == 'n' || letter == '.'; });
      sequences.emplace_back(strip_space(bases));
    }
    at = end + 2;
  }
  return sequences;
}

std::vector<std::string> chess_documents(std::string_view text) {
  constexpr std::string_view kRule = "\n---\n";
  std::vector<std::string> documents;
  size_t begin = 0;
  size_t at = text.find('\n');
  for (; at != kNotFound; at = text.find('\n', at)) {
    const bool rule = text.substr(at).starts_with(kRule);
    if (rule || text.substr(at + 1).starts_with("[Event ")) {
      documents.emplace_back(text.substr(begin, at - begin));
      begin = at + (rule ? kRule.size() : 1);
      at = begin;
    } else {
      ++at;
    }
  }
  documents.emplace_back(text.substr(begin));
  return documents;
}

std::vector<std::string> cut_at_blank_lines(std::string_view text, size_t bytes) {
  std::vector<std::string> pieces;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find("\n\n", at + bytes), text.size());
    pieces.emplace_back(strip_characters(text.substr(at, end - at), "\n"));
    at = end + 2;
  }
  return pieces;
}

}  // namespace switchyard
