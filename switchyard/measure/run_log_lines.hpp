#pragma once
// The lines of a run log, for those that read it and the one that cuts it.

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace switchyard {

struct LogLine {
  std::string text;
  std::string where;  // "runs/a/log.jsonl:12"
  std::string kind;
  int64_t step = 0;
  nlohmann::ordered_json object;

  /// Not JSON: it has neither kind nor step.
  [[nodiscard]] bool is_broken() const { return object.is_discarded(); }
};

/// In the order of the file. A torn last line, one without its newline that is not whole, is left out.
/// @throws DataError naming file and line: a line that is JSON but no record, or of another schema
[[nodiscard]] std::vector<LogLine> read_log_lines(const std::filesystem::path& path);

/// @throws DataError if it is broken
void refuse_broken(const LogLine& line);

}  // namespace switchyard
