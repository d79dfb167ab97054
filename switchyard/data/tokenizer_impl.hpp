#pragma once
// Shared by tokenizer.cpp and tokenizer_export.cpp only: keeps SentencePiece out of the public header.

#include <sentencepiece_processor.h>

#include <string>
#include <string_view>

#include "switchyard/data/tokenizer.hpp"

namespace switchyard {

inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";   // U+2581
inline constexpr std::string_view kEscape = "\xF4\x8F\x96\x81";  // U+10F581, X
inline constexpr std::string_view kEscapedEscape =
    "\xF4\x8F\x96\x81"
    "0";
inline constexpr std::string_view kEscapedSpaceMark =
    "\xF4\x8F\x96\x81"
    "1";

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
};

/// X -> X0, then U+2581 -> X1.
[[nodiscard]] std::string escape_space_marks(std::string_view text);
/// X1 -> U+2581, then X0 -> X.
[[nodiscard]] std::string unescape_space_marks(std::string_view text);

}  // namespace switchyard
