#pragma once
// The documents of one domain, as recipes deliver them.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace switchyard {

struct DomainText {
  std::vector<std::string> documents;  // UTF-8, no NUL, not empty, no two equal, no newline at either end
  int64_t bytes = 0;                   // each document and one more for its end
};

/// SHA-256 of all documents, each followed by one NUL byte.
[[nodiscard]] std::string text_hash(const DomainText& text);

/// Collects documents: drops NULs, newlines at both ends, empty ones and repeats, and stops at a cap.
class DocumentSink {
 public:
  /// @param cap  bytes, counted as in DomainText; the first document that would pass it ends the domain. 0: none
  explicit DocumentSink(int64_t cap) : cap_(cap) {}

  void add(std::string_view document);
  /// True when further documents would be dropped: recipes may stop.
  [[nodiscard]] bool full() const { return full_; }
  [[nodiscard]] DomainText take() { return std::move(text_); }

 private:
  DomainText text_;
  std::unordered_multimap<uint64_t, size_t> places_;  // hash -> document
  int64_t cap_ = 0;
  bool full_ = false;
};

}  // namespace switchyard
