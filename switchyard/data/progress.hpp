#pragma once

#include <cstdint>
#include <string_view>

namespace switchyard {

/// Told how far a long job is. Calls come one at a time, but from any thread.
class Progress {
 public:
  virtual ~Progress() = default;
  /// @param phase  "download", "extract", "tokenizer", "encode"; a new name begins a new phase
  /// @param done   0 at the beginning, `total` at the end
  virtual void report(std::string_view phase, int64_t done, int64_t total) = 0;
};

}  // namespace switchyard
