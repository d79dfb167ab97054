#pragma once
// What a reader of a run's log must know before its numbers.

#include <string>
#include <vector>

#include "switchyard/data/few_documents.hpp"
#include "switchyard/train/run_config.hpp"

namespace switchyard {

/// Where a run stands when its process starts.
struct RunStart {
  int64_t step = 0;  // done before
  int64_t ranks = 1;
  int64_t ranks_before = 1;  // of the process that went before, where there was one
  ComputeType compute = ComputeType::Float32;
  int64_t heldout_sequences = 0;
  int64_t domains = 2;  // that are trained on
  std::vector<DomainDocuments> heldout_documents = {};  // that are evaluated
};

/// In the order in which they are to be read. Those that are of the configuration alone come only at the first start.
[[nodiscard]] std::vector<std::string> standing_notices(const RunConfig& config, const RunStart& start);

}  // namespace switchyard
