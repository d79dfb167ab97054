#include "switchyard/data/tokenizer.hpp"

#include <algorithm>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/tokenizer_impl.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {
namespace {

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t found = text.find(from); found != kNotFound; found = text.find(from, at)) {
    out.append(text.substr(at, found - at)).append(to);
    at = found + from.size();
  }
  return out.append(text.substr(at));
}

// Where the first run of spaces behind `from` begins.
size_t find_run_of_spaces(std::string_view text, size_t from) {
  size_t at = text.find(' ', from);
  while (at != kNotFound && text[at - 1] == ' ') at = text.find(' ', at + 1);
  return at;
}

// No piece reaches over a newline or from a character to a space behind it, so a document may be encoded in parts that end
// there: SentencePiece slows down on long input, and takes 150 bytes of memory a byte. Text that has neither for 64 KB is
// parted between characters.
std::string_view next_part(std::string_view rest) {
  constexpr size_t kPartBytes = 2048;
  constexpr size_t kLongestPart = kPartBytes + 65536;
  const std::string_view near = rest.substr(0, kLongestPart);
  const size_t newline = near.find('\n', std::min(kPartBytes, near.size()));
  if (newline != kNotFound) return rest.substr(0, newline + 1);
  if (near.size() == rest.size()) return rest;
  const size_t space = find_run_of_spaces(near, kPartBytes);
  return rest.substr(0, space != kNotFound ? space : character_begin(rest, kLongestPart));
}

void check_kind(const sentencepiece::SentencePieceProcessor& processor, std::string_view name) {
  const bool specials =
      processor.unk_id() == kUnknownPiece && processor.bos_id() == kBeginPiece && processor.eos_id() == kEndPiece;
  const bool bytes = processor.GetPieceSize() > kFirstBytePiece + 255 && processor.IsByte(static_cast<int>(kFirstBytePiece)) &&
                     processor.IsByte(static_cast<int>(kFirstBytePiece) + 255);
  const bool newline = bytes && processor.IdToPiece(static_cast<int>(kNewlinePiece)) == "\n";
  SWITCHYARD_CHECK(specials && newline, DataError, "tokenizer ", name,
                   " was not made by switchyard: expected <unk> <s> </s> newline and 256 byte pieces as the first ids");
}

}  // namespace

std::string escape_space_marks(std::string_view text) {
  if (text.find(kSpaceMark) == kNotFound && text.find(kEscape) == kNotFound) return std::string(text);
  return replace_all(replace_all(text, kEscape, kEscapedEscape), kSpaceMark, kEscapedSpaceMark);
}

std::string unescape_space_marks(std::string_view text) {
  if (text.find(kEscape) == kNotFound) return std::string(text);
  return replace_all(replace_all(text, kEscapedSpaceMark, kSpaceMark), kEscapedEscape, kEscape);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(const std::filesystem::path& model) : Tokenizer(from_bytes(read_file(model), model.string())) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::from_bytes(std::string_view model, std::string_view name) {
  auto impl = std::make_unique<Impl>();
  const auto status = impl->processor.LoadFromSerializedProto(model);
  SWITCHYARD_CHECK(status.ok(), DataError, "tokenizer ", name, " cannot be read: ", status.ToString());
  check_kind(impl->processor, name);
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  const std::optional<size_t> bad = find_invalid_utf8(text);
  SWITCHYARD_CHECK(!bad, DataError, "text to encode is not UTF-8 at byte ", bad.value_or(0));
  const std::string escaped = escape_space_marks(text);
  std::string_view rest = escaped;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  std::vector<int> part_ids;
  while (!rest.empty()) {
    const std::string_view part = next_part(rest);
    const auto status = impl_->processor.Encode(part, &part_ids);
    SWITCHYARD_CHECK(status.ok(), DataError, "SentencePiece cannot encode: ", status.ToString());
    ids.insert(ids.end(), part_ids.begin(), part_ids.end());
    rest.remove_prefix(part.size());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string spelling = piece(id);
    if (impl_->processor.IsByte(id)) {
      text += static_cast<char>(id - kFirstBytePiece);
    } else if (!impl_->processor.IsControl(id) && !impl_->processor.IsUnknown(id)) {
      text += replace_all(spelling, kSpaceMark, " ");
    }
  }
  return unescape_space_marks(replace_invalid_utf8(text));
}

int64_t Tokenizer::vocab_size() const { return impl_->processor.GetPieceSize(); }

std::string Tokenizer::piece(int64_t id) const {
  SWITCHYARD_CHECK(id >= 0 && id < vocab_size(), UsageError, "token ", id, " was given; the tokenizer has ", vocab_size());
  return impl_->processor.IdToPiece(static_cast<int>(id));
}

}  // namespace switchyard
