#pragma once
// Adds up what the routers did on held-out text: integer counts by document, from which every metric of an evaluation follows.
// T tokens, E experts, K chosen per token, N domains, X documents, M micro-batches.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/routing.hpp"
#include "switchyard/measure/load.hpp"
#include "switchyard/measure/matrix.hpp"

namespace switchyard {

struct TallyShape {
  int64_t num_layers = 0;   // MoE layers
  int64_t num_domains = 0;  // N
  int64_t num_experts = 0;  // E
  int64_t num_chosen = 0;   // K, the mean where it varies; where the margin is taken
};

/// Labels of the tokens of one forward, all int64 [T], -1 at padding.
struct TokenLabels {
  at::Tensor domain_T;       // in [0, N)
  at::Tensor document_T;     // document number, unique over the data set; its windows share it
  at::Tensor micro_batch_T;  // in [0, M): which tokens are one micro-batch; undefined: the forward is one
};

/// What one MoE layer did over all batches.
struct LayerTally {
  Matrix<int64_t> slots_XE;           // requested slots
  Matrix<int64_t> first_choice_XE;    // the token's best expert: ids_TK[:, 0], else its slot of the largest weight
  std::vector<LoadMetrics> micro_batches;  // one for each micro-batch that has slots
  double margin_sum = 0.0;            // over margin_tokens, of the K-th minus the (K+1)-th largest probability
  int64_t margin_tokens = 0;          // valid tokens with scores; 0 where K = E
};

/// Usage: for each held-out forward, begin_batch() and then add() once per MoE layer (as Decoder's observe hook does). One pass
/// over the slots of each layer. Not thread safe.
class RoutingTally {
 public:
  /// @throws ShapeError unless L, N, E >= 1 and 1 <= K <= E
  explicit RoutingTally(const TallyShape& shape);

  /// @throws ShapeError for labels of another type, length or range; DataError for a document in two domains;
  ///         StateError when a layer of the batch before is missing
  void begin_batch(const TokenLabels& labels);

  /// The documents of a batch that another rank runs: numbered as begin_batch() would, counted nowhere.
  /// @throws as begin_batch()
  void skip_batch(const TokenLabels& labels);

  /// Adds up what the ranks tallied: counts exactly, sums of margins in rank order, micro-batches rank after rank. Collective.
  /// Every rank must have begun or skipped the same batches in the same order.
  /// @throws CommError when the ranks know different numbers of documents; StateError while layers are missing
  void sum_over(Communicator& comm);

  /// @throws ShapeError when the routing does not fit labels or shape, has a slot of a padding token, or has scores that
  ///         are not finite; StateError for a layer that was added already
  void add(int64_t layer, const Routing& routing);

  [[nodiscard]] const TallyShape& shape() const { return shape_; }
  [[nodiscard]] int64_t num_documents() const { return static_cast<int64_t>(domain_X_.size()); }
  /// Documents in the order of their first token.
  [[nodiscard]] const std::vector<int64_t>& domain_X() const { return domain_X_; }
  /// @throws StateError while layers of the last batch are missing
  [[nodiscard]] const std::vector<LayerTally>& layers() const;

 private:
  void check_complete() const;
  int64_t find_document(int64_t number, int64_t domain, int64_t token);

  TallyShape shape_;
  std::vector<LayerTally> layers_;
  std::vector<int64_t> domain_X_;
  std::unordered_map<int64_t, int64_t> document_index_;

  // Of the current batch.
  std::vector<int64_t> document_T_;     // index of the document, -1 at padding
  std::vector<int64_t> micro_batch_T_;  // 0 at padding
  int64_t num_micro_batches_ = 0;
  std::vector<char> layer_done_L_;
};

}  // namespace switchyard
