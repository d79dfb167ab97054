#include "switchyard/data/documents.hpp"

#include <algorithm>
#include <utility>

#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/data/unicode.hpp"

namespace switchyard {

std::string text_hash(const DomainText& text) {
  std::string joined;
  joined.reserve(static_cast<size_t>(text.bytes));
  for (const std::string& document : text.documents) {
    joined += document;
    joined += '\0';
  }
  return sha256_hex(joined);
}

void DocumentSink::add(std::string_view document) {
  if (full_) return;
  std::string kept(document);
  std::erase(kept, '\0');
  kept = strip_characters(kept, "\n");
  if (kept.empty()) return;
  const uint64_t hash = hash_text(kept);
  const auto [first, last] = places_.equal_range(hash);
  if (std::any_of(first, last, [&](const auto& place) { return text_.documents[place.second] == kept; })) return;
  const auto size = static_cast<int64_t>(kept.size()) + 1;
  if (cap_ > 0 && text_.bytes + size > cap_) {
    full_ = true;
    return;
  }
  places_.emplace(hash, text_.documents.size());
  text_.bytes += size;
  text_.documents.push_back(std::move(kept));
}

}  // namespace switchyard
