#include "switchyard/train/resume_point.hpp"

#include <optional>

#include "switchyard/core/error.hpp"
#include "switchyard/measure/run_log.hpp"
#include "switchyard/train/checkpoint.hpp"

namespace switchyard {
namespace {

bool is_compute_type(const std::string& text) {
  for (const ComputeType type : {ComputeType::Float32, ComputeType::BFloat16, ComputeType::Float64}) {
    if (to_string(type) == text) return true;
  }
  return false;
}

/// The checkpoint's hashes were verified and anybody may have edited the log, so that one counts; where the two do not agree nobody
/// knows what was edited.
std::string compute_type_before(const std::filesystem::path& log, const std::filesystem::path& checkpoint, const std::string& saved) {
  const std::optional<StartRecord> start = find_start(log);
  const std::string logged = start ? start->compute_type : "";
  const std::string type = saved.empty() ? logged : saved;
  const bool agree = saved.empty() || !start || logged == saved;
  if (agree && (type.empty() || is_compute_type(type))) return type;
  const std::string in_log = start ? join_text("compute_type '", logged, "'") : "nothing";
  const std::string in_checkpoint = saved.empty() ? "nothing" : join_text("compute_type '", saved, "'");
  throw DataError(join_text(log.string(), " says ", in_log, ", ", checkpoint.empty() ? "a checkpoint" : state_file(checkpoint).string(), " says ",
                            in_checkpoint, "; expected one type that exists in both. Put back the one that was edited, or, if the checkpoint "
                            "is right, write its type into the last start record of the log"));
}

}  // namespace

ResumePoint find_resume_point(const RunFolder& folder, const RunConfig& config) {
  ResumePoint point;
  for (const ConfigDifference& change : check_resume_config(folder.read_config_file(), config)) {
    point.notices.push_back(join_text("resumed with ", change.key, " = ", change.after, ", was ", change.before));
  }
  std::string saved_type;
  if (list_checkpoints(folder.path()).empty()) {
    point.notices.emplace_back("no checkpoint had been written yet: the run starts from step 0 again");
  } else {
    const FoundCheckpoint found = find_checkpoint(folder.path());
    (void)check_resume_config(found.info.config, config);
    point.checkpoint = found.path;
    point.data_hash = found.info.data_hash;
    point.notices.insert(point.notices.end(), found.notices.begin(), found.notices.end());
    point.passed_over = found.passed_over;
    saved_type = found.info.compute_type;
  }
  if (config.execution.dtype == ComputeType::Auto) {
    point.compute_type = compute_type_before(folder.log_path(), point.checkpoint, saved_type);
  }
  return point;
}

}  // namespace switchyard
