#include <algorithm>

#include "switchyard/core/error.hpp"
#include "switchyard/data/batcher.hpp"

namespace switchyard {
namespace {

// Window i of n begins at an even share of the windows, so every part of the held-out documents is heard.
std::vector<Window> spread_windows(const Dataset& dataset, int64_t domain, int64_t label, int64_t length, int64_t count) {
  const int64_t tokens = dataset.shard(domain, Split::Heldout).num_tokens();
  const int64_t available = std::max<int64_t>(0, (tokens - 1) / length);
  SWITCHYARD_CHECK(count <= available, DataError, "domain '", dataset.manifest().domains[static_cast<size_t>(domain)].name,
                   "' of ", dataset.folder().string(), " has ", tokens, " held-out tokens, enough for ", available,
                   " sequences of ", length, "; ", count,
                   " were asked for: ask for fewer or build the data set with more held-out text");
  std::vector<Window> windows;
  for (int64_t i = 0; i < count; ++i) windows.push_back({domain, label, i * available / count * length});
  return windows;
}

}  // namespace

std::vector<Batch> heldout_batches(const Dataset& dataset, const std::vector<std::string>& domains, int64_t sequence_length,
                                   int64_t sequences_per_domain, int64_t sequences_per_batch, SegmentKind segments) {
  SWITCHYARD_CHECK(sequence_length >= 1 && sequences_per_domain >= 1 && sequences_per_batch >= 1, UsageError,
                   "held-out batches of ", sequences_per_batch, " of ", sequences_per_domain, " sequences of ", sequence_length,
                   " tokens were asked for; each must be at least 1");
  std::vector<Batch> batches;
  int64_t label = 0;
  for (const int64_t domain : dataset.select_domains(domains)) {
    const std::vector<Window> windows = spread_windows(dataset, domain, label++, sequence_length, sequences_per_domain);
    for (int64_t first = 0; first < sequences_per_domain; first += sequences_per_batch) {
      const auto begin = windows.begin() + first;
      const auto end = windows.begin() + std::min(sequences_per_domain, first + sequences_per_batch);
      batches.push_back(batch_of_windows(dataset, Split::Heldout, {begin, end}, sequence_length, segments,
                                         static_cast<int64_t>(batches.size())));
    }
  }
  return batches;
}

}  // namespace switchyard
