#pragma once
// What `switchyard list metrics` prints. Each has a section of its name in docs/metrics.md (a test checks it).

#include <string_view>
#include <vector>

namespace switchyard {

struct MetricEntry {
  std::string_view name;         // as in the run log
  std::string_view description;  // one line
  std::string_view range;
  std::string_view unit;
  std::string_view scope;        // the tokens it is taken over
};

/// All metrics, in the order of the documentation.
[[nodiscard]] const std::vector<MetricEntry>& metric_table();

}  // namespace switchyard
