#include "switchyard/data/rows.hpp"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kSegmentKinds =
    std::to_array<Spelling<SegmentKind>>({{SegmentKind::Row, "row"}, {SegmentKind::Document, "document"}});

// Writes the labels of one row and appends its segments.
void label_row(const Dataset& dataset, Split split, const Window& window, int64_t length, SegmentKind segments,
               int64_t micro_batch, int64_t* document_S, int64_t* segment_S, Batch& batch) {
  const TokenShard& shard = dataset.shard(window.domain, split);
  const int64_t number = dataset.first_document(window.domain, split);
  int64_t document = shard.document_of(window.first_token);
  for (int64_t done = 0; done < length; ++document) {
    const int64_t end = std::min(length, shard.document_start(document + 1) - window.first_token);
    if (end == done) continue;  // a document without tokens
    if (done == 0 || segments == SegmentKind::Document) {
      batch.segment_tokens.push_back(0);
      batch.segment_micro_batch.push_back(micro_batch);
    }
    batch.segment_tokens.back() += end - done;
    std::fill(document_S + done, document_S + end, number + document);
    std::fill(segment_S + done, segment_S + end, batch.num_segments() - 1);
    done = end;
  }
}

}  // namespace

std::string to_string(const SegmentKind& value) { return spelling_of(kSegmentKinds, value); }
void parse(std::string_view text, SegmentKind& value) { value = from_spelling("segment kind", kSegmentKinds, text); }

Batch batch_of_windows(const Dataset& dataset, Split split, const std::vector<Window>& windows, int64_t sequence_length,
                       SegmentKind segments, int64_t micro_batch) {
  const auto rows = static_cast<int64_t>(windows.size());
  const int64_t length = sequence_length;
  Batch batch;
  batch.ids_BS = at::empty({rows, length}, at::kLong);
  batch.targets_BS = at::empty({rows, length}, at::kLong);
  batch.domain_T = at::empty({rows * length}, at::kLong);
  batch.document_T = at::empty({rows * length}, at::kLong);
  batch.segment_T = at::empty({rows * length}, at::kLong);
  auto* ids = batch.ids_BS.mutable_data_ptr<int64_t>();
  auto* targets = batch.targets_BS.mutable_data_ptr<int64_t>();
  auto* domains = batch.domain_T.mutable_data_ptr<int64_t>();
  auto* documents = batch.document_T.mutable_data_ptr<int64_t>();
  auto* segment = batch.segment_T.mutable_data_ptr<int64_t>();
  std::vector<int64_t> tokens(static_cast<size_t>(length) + 1);
  for (int64_t row = 0; row < rows; ++row) {
    const Window& window = windows[static_cast<size_t>(row)];
    const int64_t at = row * length;
    dataset.shard(window.domain, split).copy_tokens(window.first_token, std::span<int64_t>(tokens));
    std::copy(tokens.begin(), tokens.end() - 1, ids + at);
    std::copy(tokens.begin() + 1, tokens.end(), targets + at);
    std::fill(domains + at, domains + at + length, window.label);
    label_row(dataset, split, window, length, segments, micro_batch, documents + at, segment + at, batch);
  }
  return batch;
}

}  // namespace switchyard
