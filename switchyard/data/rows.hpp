#pragma once
// From places in a data set to tensors. B rows, S positions, T = B * S.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/data/batch.hpp"
#include "switchyard/data/dataset.hpp"

namespace switchyard {

/// What a segment of a batch is: a row, or each packed document of a row.
enum class SegmentKind { Row, Document };
[[nodiscard]] std::string to_string(const SegmentKind& value);  // "row", "document"
void parse(std::string_view text, SegmentKind& value);

/// A window of S + 1 tokens of a domain's documents laid end to end.
struct Window {
  int64_t domain = 0;  // in the data set
  int64_t label = 0;   // what domain_T shall say
  int64_t first_token = 0;
};

/// One row per window: ids are its first S tokens, targets its last S. No padding.
[[nodiscard]] Batch batch_of_windows(const Dataset& dataset, Split split, const std::vector<Window>& windows,
                                     int64_t sequence_length, SegmentKind segments, int64_t micro_batch);

}  // namespace switchyard
