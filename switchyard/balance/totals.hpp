#pragma once
// Counts and sums over ranges of the step's segments, wherever their tokens lie. Ranges whose tokens lie on one rank are added
// up there; ranges that several ranks share are cut into cells, and each forward sends those of its cells in one all-reduce
// for all layers. S segments of the whole step, F forwards, L MoE layers, E experts, N domains.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "switchyard/balance/gathered_plan.hpp"
#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/ledger.hpp"
#include "switchyard/balance/shape.hpp"
#include "switchyard/comm/communicator.hpp"

namespace switchyard {

/// Whose tokens a range of segments holds.
enum class Holding { Mine, Shared, Elsewhere };

/// Life of a step: need_*() for every range that will be asked for, seal(), then per forward record() of each layer,
/// start(), and, before its numbers are read, finish().
class StepTotals {
 public:
  /// @param comm  outlives this; not used if the plan is of one rank
  StepTotals(const GatheredPlan& plan, const StepPlan& local, const BalanceShape& shape, Communicator& comm);

  void need_counts(Counted which, const SegmentRange& range);
  void need_sums(TokenSum which, const SegmentRange& range);
  void need_domain_means(const SegmentRange& range);
  void seal();

  [[nodiscard]] StepLedger& ledger() { return ledger_; }
  [[nodiscard]] const StepLedger& ledger() const { return ledger_; }
  [[nodiscard]] const GatheredPlan& plan() const { return plan_; }
  [[nodiscard]] int64_t num_domains() const { return num_domains_; }

  /// Collective if the forward has shared cells (the same answer on every rank).
  /// @param problems  number of problems that this rank has met; summed over ranks in the same message
  void start(int64_t forward, int64_t problems);
  /// Waits for what start() sent. @return problems of all ranks, 0 where nothing was sent
  int64_t finish(int64_t forward);

  [[nodiscard]] Holding holding(const SegmentRange& range) const;
  /// Whether every forward with tokens in the range is finished.
  [[nodiscard]] bool complete(const SegmentRange& range) const;

  /// Of a range that is Mine, or Shared and complete.
  [[nodiscard]] std::vector<int64_t> counts_E(Counted which, int64_t layer, const SegmentRange& range) const;
  [[nodiscard]] std::vector<double> sums_E(TokenSum which, int64_t layer, const SegmentRange& range) const;
  /// Mean over a domain's segments of a segment's mean probability, [N, E]; zeros for domains without segments in the range.
  [[nodiscard]] std::vector<double> domain_means_NE(int64_t layer, const SegmentRange& range) const;
  /// Segments with tokens of each domain in the range, [N].
  [[nodiscard]] std::vector<int64_t> domain_sizes_N(const SegmentRange& range) const;

  /// Slots of the whole step in step order, int64 [M * R, L, E]: micro-batches, and within one its data ranks. Collective.
  [[nodiscard]] at::Tensor micro_batch_counts_MLE() const;

  /// This rank's segments within a range of the whole step.
  [[nodiscard]] SegmentRange local_range(const SegmentRange& range) const;

 private:
  struct Shipment {  // of one forward
    std::vector<int64_t> counts;  // [cells, kinds, L, E], then the number of problems
    std::vector<double> sums;     // [cells, rows, L, E]
    Pending counts_pending;
    Pending sums_pending;
    bool started = false;
    bool finished = false;
  };

  [[nodiscard]] const SegmentRange& cells_of_forward(int64_t forward) const {
    return cells_of_forward_F_[static_cast<size_t>(forward)];
  }
  [[nodiscard]] int64_t sum_rows() const;
  void pack_cell(const SegmentRange& cell, int64_t* counts, double* sums) const;
  void add_domain_rows(int64_t layer, const SegmentRange& local, double* rows_NE, int64_t row_stride) const;
  /// Adds up one row of the cells in `range`, of counts or of sums.
  template <typename Number>
  [[nodiscard]] std::vector<Number> cells_E(std::vector<Number> Shipment::*kept, int64_t row, int64_t num_rows, int64_t layer,
                                            const SegmentRange& range) const;

  GatheredPlan plan_;
  StepPlan local_;
  BalanceShape shape_;
  Communicator& comm_;
  StepLedger ledger_;
  int64_t num_domains_ = 0;
  std::vector<SegmentRange> shared_ranges_;
  std::vector<Counted> count_kinds_;   // of shared ranges
  std::vector<TokenSum> sum_kinds_;    // the same
  bool ship_domains_ = false;
  std::vector<SegmentRange> cells_;    // rising, each within one forward
  std::vector<SegmentRange> cells_of_forward_F_;  // indices of cells_
  std::vector<Shipment> shipments_F_;
};

}  // namespace switchyard
