#pragma once
// testbed.json, what a testbed leaves beside its runs for the report. All keys but "runs" may be missing; others are ignored.
//
//   { "schema": 1, "name": "demo", "question": "...", "baseline": "optimizer_batch", "notes": ["..."],
//     "arms":   [ { "name": "optimizer_batch", "kind": "trained" | "floor" | "ceiling", "description": "..." } ],
//     "runs":   [ { "name": "optimizer_batch-seed0", "folder": "optimizer_batch-seed0",        folders relative to the file
//                   "evaluated": { "step": 300, "loss": 5.95, "specialization": 0.39 } } ],    what the claims rest on; null: nothing
//     "claims": [ { "text": "...", "verdict": "holds" | "fails" | "undecided", "detail": "..." } ] }

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "switchyard/report/report.hpp"

namespace switchyard {

inline constexpr const char* kStudyFileName = "testbed.json";
inline constexpr int64_t kStudyFileSchema = 1;

/// What a run had measured when the claims were decided.
struct StudyFileResult {
  int64_t step = 0;
  std::optional<double> loss;  // none: not finite
  double specialization = 0.0;
};

struct StudyFileRun {
  std::string name;
  std::filesystem::path folder;  // as the file has it
  std::optional<StudyFileResult> evaluated;  // none where the run had no result, or the file does not say
};

struct StudyFile {
  std::string name;
  std::string question;
  std::string baseline;
  std::vector<std::string> notes;
  std::vector<ArmInfo> arms;
  std::vector<StudyFileRun> runs;
  std::vector<ClaimInfo> claims;
};

/// @throws DataError naming the file, and what is wrong: no JSON, a key of the wrong type, an unknown kind, verdict or schema
[[nodiscard]] StudyFile read_study_file(const std::filesystem::path& path);

}  // namespace switchyard
