#pragma once
// The extraction recipes: bytes of a file in, text or documents out. Pure functions.

#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

/// Paragraphs, headings and preformatted blocks of the reading area of a LibreOffice help page, white space folded.
[[nodiscard]] std::vector<std::string> help_paragraphs(std::string_view html);

/// A groff page (man or mdoc macros) as text: macros and escapes dropped, arguments of headings and fonts kept.
[[nodiscard]] std::string man_to_text(std::string_view page);

/// Keeps empty lines and lines of which at least a third of the characters are not ASCII: what is still English goes.
[[nodiscard]] std::string keep_non_ascii_lines(std::string_view text);

/// The books of a SWORD module (zText, zCom).
/// @param index   little-endian triples u32 (offset, size, inflated size)
/// @param blocks  what they point into: zlib streams of OSIS or ThML
/// @throws DataError for an index that points outside or a block that is damaged
[[nodiscard]] std::vector<std::string> sword_documents(std::string_view index, std::string_view blocks);

/// One OSIS or ThML block as text.
[[nodiscard]] std::string sword_to_text(std::string_view block);

/// The sequences of a FASTA file: no header lines, no unknown bases ('n', '.').
[[nodiscard]] std::vector<std::string> fasta_sequences(std::string_view fasta);

/// Chess problems (separated by lines "---") and games (each begins with "[Event ").
[[nodiscard]] std::vector<std::string> chess_documents(std::string_view text);

/// Pieces of at least `bytes`, cut at the first blank line behind that; the last may be shorter.
[[nodiscard]] std::vector<std::string> cut_at_blank_lines(std::string_view text, size_t bytes);

}  // namespace switchyard
