#include "switchyard/data/batch.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>

#include "switchyard/core/error.hpp"

namespace switchyard {

int64_t Batch::num_targets() const { return targets_BS.ne(kIgnoredTarget).sum().item<int64_t>(); }

Batch join_batches(const std::vector<Batch>& batches) {
  SWITCHYARD_CHECK(!batches.empty(), ShapeError, "join_batches was given no batch; expected at least one");
  std::vector<at::Tensor> ids, targets, domains, documents, segments;
  Batch joined;
  for (const Batch& batch : batches) {
    SWITCHYARD_CHECK(batch.ids_BS.size(1) == batches.front().ids_BS.size(1), ShapeError, "join_batches was given rows of ",
                     batch.ids_BS.size(1), " and of ", batches.front().ids_BS.size(1), " tokens; expected one length");
    ids.push_back(batch.ids_BS);
    targets.push_back(batch.targets_BS);
    domains.push_back(batch.domain_T);
    documents.push_back(batch.document_T);
    segments.push_back(at::where(batch.segment_T.ge(0), batch.segment_T.add(joined.num_segments()), batch.segment_T));
    joined.segment_tokens.insert(joined.segment_tokens.end(), batch.segment_tokens.begin(), batch.segment_tokens.end());
    joined.segment_micro_batch.insert(joined.segment_micro_batch.end(), batch.segment_micro_batch.begin(),
                                      batch.segment_micro_batch.end());
  }
  joined.ids_BS = at::cat(ids);
  joined.targets_BS = at::cat(targets);
  joined.domain_T = at::cat(domains);
  joined.document_T = at::cat(documents);
  joined.segment_T = at::cat(segments);
  return joined;
}

}  // namespace switchyard
