#pragma once
// Where a resumed run goes on.

#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/train/run_config.hpp"
#include "switchyard/train/run_folder.hpp"

namespace switchyard {

struct ResumePoint {
  std::filesystem::path checkpoint;  // the newest whole one; empty where none had been written: from step 0 again
  std::string data_hash;             // of the checkpoint
  std::string compute_type;          // that the run began in; empty where nothing says
  std::vector<std::string> notices;
  std::vector<std::filesystem::path> passed_over;  // damaged checkpoints
};

/// @throws ConfigError naming the keys in which `config` is that of another run; DataError where there are checkpoints but no whole
///         one, or where checkpoint and log were not written in one compute type and `config` leaves that to them
[[nodiscard]] ResumePoint find_resume_point(const RunFolder& folder, const RunConfig& config);

}  // namespace switchyard
