#include "switchyard/balance/totals.hpp"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <map>
#include <span>

#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"

namespace switchyard {
namespace {

bool within(const SegmentRange& inner, const SegmentRange& outer) {
  return inner.begin >= outer.begin && inner.end <= outer.end;
}

template <typename Kind>
int64_t index_of(const std::vector<Kind>& kinds, Kind kind) {
  const auto found = std::find(kinds.begin(), kinds.end(), kind);
  SWITCHYARD_CHECK(found != kinds.end(), StateError, "a sum over ranks was asked for that was not declared with need_*()");
  return found - kinds.begin();
}

template <typename Kind>
void add_once(std::vector<Kind>& kinds, Kind kind) {
  if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(kind);
}

}  // namespace

StepTotals::StepTotals(const GatheredPlan& plan, const StepPlan& local, const BalanceShape& shape, Communicator& comm)
    : plan_(plan), local_(local), shape_(shape), comm_(comm), ledger_(local, shape.num_layers, shape.num_experts),
      shipments_F_(static_cast<size_t>(local.num_forwards())) {
  for (const int64_t domain : plan.whole.segment_domain) num_domains_ = std::max(num_domains_, domain + 1);
}

Holding StepTotals::holding(const SegmentRange& range) const {
  if (plan_.num_ranks == 1) return Holding::Mine;  // whatever ranks the segments name: one process may plan for many
  int64_t only_rank = -1;
  for (int64_t segment = range.begin; segment < range.end; ++segment) {
    const auto s = static_cast<size_t>(segment);
    if (plan_.whole.segment_tokens[s] == 0) continue;
    const int64_t rank = plan_.whole.rank_of(segment);
    if (plan_.holders_of_segment[s] > 1 || (only_rank != -1 && only_rank != rank)) return Holding::Shared;
    only_rank = rank;
  }
  return only_rank == -1 || only_rank == plan_.data_rank ? Holding::Mine : Holding::Elsewhere;
}

void StepTotals::need_counts(Counted which, const SegmentRange& range) {
  if (holding(range) != Holding::Shared) return;
  add_once(count_kinds_, which);
  shared_ranges_.push_back(range);
}

void StepTotals::need_sums(TokenSum which, const SegmentRange& range) {
  if (holding(range) != Holding::Shared) return;
  add_once(sum_kinds_, which);
  shared_ranges_.push_back(range);
}

void StepTotals::need_domain_means(const SegmentRange& range) {
  if (holding(range) != Holding::Shared) return;
  ship_domains_ = true;
  shared_ranges_.push_back(range);
}

void StepTotals::seal() {
  std::map<int64_t, int64_t> borders;  // and how many more ranges are open behind each than before it
  for (const int64_t border : plan_.whole.forward_begin) borders[border] += 0;
  for (const SegmentRange& range : shared_ranges_) {
    ++borders[range.begin];
    --borders[range.end];
  }
  int64_t open = 0;
  for (auto border = borders.begin(); border != borders.end() && std::next(border) != borders.end(); ++border) {
    open += border->second;
    if (open > 0) cells_.push_back({border->first, std::next(border)->first});
  }
  auto next = cells_.begin();
  for (int64_t forward = 0; forward < plan_.whole.num_forwards(); ++forward) {
    const SegmentRange segments = plan_.whole.segments(forward);
    const auto first = next;
    next = std::find_if_not(first, cells_.end(), [&segments](const SegmentRange& cell) { return within(cell, segments); });
    cells_of_forward_F_.push_back({first - cells_.begin(), next - cells_.begin()});
  }
}

SegmentRange StepTotals::local_range(const SegmentRange& range) const {
  const auto first = std::lower_bound(plan_.whole_of_local.begin(), plan_.whole_of_local.end(), range.begin);
  const auto last = std::lower_bound(first, plan_.whole_of_local.end(), range.end);
  return {first - plan_.whole_of_local.begin(), last - plan_.whole_of_local.begin()};
}

int64_t StepTotals::sum_rows() const {
  return static_cast<int64_t>(sum_kinds_.size()) + (ship_domains_ ? num_domains_ : 0);
}

// Sums of sum_s / T_s by domain, the rows of all layers of one domain lying `row_stride` apart.
void StepTotals::add_domain_rows(int64_t layer, const SegmentRange& local, double* rows_NE, int64_t row_stride) const {
  for (int64_t segment = local.begin; segment < local.end; ++segment) {
    const int64_t whole = plan_.whole_of_local[static_cast<size_t>(segment)];
    const int64_t domain = plan_.whole.domain_of(whole);
    const int64_t tokens = plan_.whole.segment_tokens[static_cast<size_t>(whole)];
    if (domain < 0 || tokens == 0) continue;
    const double* sums_E = ledger_.segment_probs_E(layer, segment);
    double* row_E = rows_NE + domain * row_stride;
    for (int64_t expert = 0; expert < shape_.num_experts; ++expert) row_E[expert] += sums_E[expert] / static_cast<double>(tokens);
  }
}

void StepTotals::pack_cell(const SegmentRange& cell, int64_t* counts, double* sums) const {
  const SegmentRange local = local_range(cell);
  const int64_t row_size = shape_.num_layers * shape_.num_experts;
  for (int64_t layer = 0; layer < shape_.num_layers; ++layer) {
    int64_t* count_row = counts + layer * shape_.num_experts;
    for (const Counted kind : count_kinds_) {
      const std::vector<int64_t> counts_E = ledger_.counts_E(kind, layer, local);
      std::copy(counts_E.begin(), counts_E.end(), count_row);
      count_row += row_size;
    }
    double* sum_row = sums + layer * shape_.num_experts;
    for (const TokenSum kind : sum_kinds_) {
      const std::vector<double> sums_E = ledger_.sums_E(kind, layer, local);
      std::copy(sums_E.begin(), sums_E.end(), sum_row);
      sum_row += row_size;
    }
    if (ship_domains_) add_domain_rows(layer, local, sum_row, row_size);
  }
}

void StepTotals::start(int64_t forward, int64_t problems) {
  Shipment& shipment = shipments_F_[static_cast<size_t>(forward)];
  shipment.started = true;
  const SegmentRange& cells = cells_of_forward(forward);
  if (cells.empty()) return;
  const int64_t row_size = shape_.num_layers * shape_.num_experts;
  const int64_t count_size = static_cast<int64_t>(count_kinds_.size()) * row_size;
  const int64_t sum_size = sum_rows() * row_size;
  shipment.counts.assign(static_cast<size_t>(cells.size() * count_size + 1), 0);
  shipment.sums.assign(static_cast<size_t>(cells.size() * sum_size), 0.0);
  // A replica's tokens are counted by the rank that it is a copy of.
  for (int64_t cell = cells.begin; plan_.replica == 0 && problems == 0 && cell < cells.end; ++cell) {
    pack_cell(cells_[static_cast<size_t>(cell)], shipment.counts.data() + (cell - cells.begin) * count_size,
              shipment.sums.data() + (cell - cells.begin) * sum_size);
  }
  shipment.counts.back() = problems;
  shipment.counts_pending = comm_.start_all_reduce_sum(std::span<int64_t>(shipment.counts));
  if (!shipment.sums.empty()) shipment.sums_pending = comm_.start_all_reduce_sum(std::span<double>(shipment.sums));
}

int64_t StepTotals::finish(int64_t forward) {
  Shipment& shipment = shipments_F_[static_cast<size_t>(forward)];
  SWITCHYARD_CHECK(shipment.started, StateError, "totals of forward ", forward, " are waited for before start()");
  if (shipment.finished) return 0;
  shipment.finished = true;
  if (shipment.counts.empty()) return 0;  // nothing was sent
  const PartScope part("waiting for ranks");
  shipment.counts_pending.wait();
  shipment.sums_pending.wait();
  return shipment.counts.back();
}

bool StepTotals::complete(const SegmentRange& range) const {
  for (int64_t forward = 0; forward < plan_.whole.num_forwards(); ++forward) {
    const auto [begin, end] = plan_.whole.segments(forward);
    if (begin < range.end && end > range.begin && begin < end && !shipments_F_[static_cast<size_t>(forward)].finished) {
      return false;
    }
  }
  return true;
}

template <typename Number>
std::vector<Number> StepTotals::cells_E(std::vector<Number> Shipment::*kept, int64_t row, int64_t num_rows, int64_t layer,
                                        const SegmentRange& range) const {
  std::vector<Number> sums_E(static_cast<size_t>(shape_.num_experts), Number{0});
  const int64_t row_size = shape_.num_layers * shape_.num_experts;
  // Steps of packed documents have thousands of ranges: going over all cells for each would cost their square.
  const auto before = [](const SegmentRange& cell, int64_t segment) { return cell.begin < segment; };
  const auto first = std::lower_bound(cells_.begin(), cells_.end(), range.begin, before);
  const SegmentRange in_range{first - cells_.begin(), std::lower_bound(first, cells_.end(), range.end, before) - cells_.begin()};
  for (int64_t forward = 0; forward < plan_.whole.num_forwards(); ++forward) {
    const SegmentRange cells = cells_of_forward(forward);
    const std::vector<Number>& values = shipments_F_[static_cast<size_t>(forward)].*kept;
    for (int64_t cell = std::max(cells.begin, in_range.begin); cell < std::min(cells.end, in_range.end); ++cell) {
      const Number* from =
          values.data() + ((cell - cells.begin) * num_rows + row) * row_size + layer * shape_.num_experts;
      for (Number& sum : sums_E) sum += *from++;
    }
  }
  return sums_E;
}

std::vector<int64_t> StepTotals::counts_E(Counted which, int64_t layer, const SegmentRange& range) const {
  if (holding(range) != Holding::Shared) return ledger_.counts_E(which, layer, local_range(range));
  return cells_E(&Shipment::counts, index_of(count_kinds_, which), static_cast<int64_t>(count_kinds_.size()), layer, range);
}

std::vector<double> StepTotals::sums_E(TokenSum which, int64_t layer, const SegmentRange& range) const {
  if (holding(range) != Holding::Shared) return ledger_.sums_E(which, layer, local_range(range));
  return cells_E(&Shipment::sums, index_of(sum_kinds_, which), sum_rows(), layer, range);
}

std::vector<double> StepTotals::domain_means_NE(int64_t layer, const SegmentRange& range) const {
  std::vector<double> means_NE(static_cast<size_t>(num_domains_ * shape_.num_experts), 0.0);
  if (holding(range) != Holding::Shared) {
    add_domain_rows(layer, local_range(range), means_NE.data(), shape_.num_experts);
  } else {
    for (int64_t domain = 0; domain < num_domains_; ++domain) {
      const int64_t row = static_cast<int64_t>(sum_kinds_.size()) + domain;
      const std::vector<double> row_E = cells_E(&Shipment::sums, row, sum_rows(), layer, range);
      std::copy(row_E.begin(), row_E.end(), means_NE.begin() + domain * shape_.num_experts);
    }
  }
  const std::vector<int64_t> sizes_N = domain_sizes_N(range);
  for (size_t at = 0; at < means_NE.size(); ++at) {
    means_NE[at] /= static_cast<double>(std::max<int64_t>(sizes_N[at / static_cast<size_t>(shape_.num_experts)], 1));
  }
  return means_NE;
}

std::vector<int64_t> StepTotals::domain_sizes_N(const SegmentRange& range) const {
  std::vector<int64_t> sizes_N(static_cast<size_t>(num_domains_), 0);
  for (int64_t segment = range.begin; segment < range.end; ++segment) {
    const int64_t domain = plan_.whole.domain_of(segment);
    if (domain >= 0 && plan_.whole.segment_tokens[static_cast<size_t>(segment)] > 0) ++sizes_N[static_cast<size_t>(domain)];
  }
  return sizes_N;
}

// Rows of all ranks in step order: micro-batches, and within one its data ranks.
at::Tensor StepTotals::micro_batch_counts_MLE() const {
  at::Tensor own_MLE = ledger_.micro_batch_counts_MLE();
  if (comm_.size() == 1) return own_MLE;
  const auto row_size = static_cast<size_t>(shape_.num_layers * shape_.num_experts);
  const auto num_ranks = static_cast<size_t>(comm_.size());
  std::vector<int64_t> mine(own_MLE.const_data_ptr<int64_t>(), own_MLE.const_data_ptr<int64_t>() + own_MLE.numel());
  const int64_t data_rank = plan_.replica > 0 ? -1 : plan_.data_rank;
  mine.push_back(data_rank);
  std::vector<int64_t> all(mine.size() * num_ranks);
  comm_.all_gather(mine, all);

  std::vector<int64_t> data_ranks;  // of each rank, then the distinct ones in order
  for (size_t rank = 0; rank < num_ranks; ++rank) data_ranks.push_back(all[(rank + 1) * mine.size() - 1]);
  std::vector<int64_t> distinct = data_ranks;
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  std::erase(distinct, -1);
  const int64_t num_micro_batches = own_MLE.size(0);
  at::Tensor sums_MLE = at::zeros({num_micro_batches * static_cast<int64_t>(distinct.size()), shape_.num_layers,
                                   shape_.num_experts}, at::kLong);
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const auto row = std::find(distinct.begin(), distinct.end(), data_ranks[rank]);
    if (row == distinct.end()) continue;
    for (int64_t micro_batch = 0; micro_batch < num_micro_batches; ++micro_batch) {
      const int64_t index = micro_batch * static_cast<int64_t>(distinct.size()) + (row - distinct.begin());
      int64_t* to = sums_MLE.mutable_data_ptr<int64_t>() + index * static_cast<int64_t>(row_size);
      const int64_t* from = all.data() + rank * mine.size() + static_cast<size_t>(micro_batch) * row_size;
      for (size_t at = 0; at < row_size; ++at) to[at] += from[at];
    }
  }
  return sums_MLE;
}

}  // namespace switchyard
