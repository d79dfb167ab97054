#include "switchyard/balance/ledger.hpp"

#include <ATen/ops/zeros.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Sums rows [begin, end) of one layer of values_LSE.
template <typename Number>
std::vector<Number> sum_rows(const at::Tensor& values_LSE, int64_t layer, const SegmentRange& range) {
  const int64_t num_experts = values_LSE.size(2);
  std::vector<Number> sums_E(static_cast<size_t>(num_experts), Number{0});
  const Number* row = values_LSE.const_data_ptr<Number>() + (layer * values_LSE.size(1) + range.begin) * num_experts;
  for (int64_t segment = range.begin; segment < range.end; ++segment) {
    for (Number& sum : sums_E) sum += *row++;
  }
  return sums_E;
}

}  // namespace

StepLedger::StepLedger(StepPlan plan, int64_t num_layers, int64_t num_experts)
    : plan_(std::move(plan)), num_layers_(num_layers), num_experts_(num_experts) {
  const std::vector<int64_t> sizes_LSE = {num_layers, plan_.num_segments(), num_experts};
  counts_LSE_ = at::zeros(sizes_LSE, at::kLong);
  first_counts_LSE_ = at::zeros(sizes_LSE, at::kLong);
  for (size_t which = 0; which < kTokenSums; ++which) sums_LSE_.push_back(at::zeros(sizes_LSE, at::kDouble));
  has_sums_L_.assign(kTokenSums, std::vector<bool>(static_cast<size_t>(num_layers), true));
  lse_LS_ = at::zeros({num_layers, plan_.num_segments()}, at::kDouble);
  seen_.assign(static_cast<size_t>(plan_.num_forwards() * num_layers), false);
}

bool StepLedger::record(int64_t forward, int64_t layer, const SegmentStatistics& statistics) {
  const at::Tensor& counts_SE = statistics.counts.counts_GE;
  const auto [begin, end] = plan_.segments(forward);
  const int64_t num_segments = end - begin;
  SWITCHYARD_CHECK(counts_SE.dim() == 2 && counts_SE.size(0) == num_segments && counts_SE.size(1) == num_experts_, ShapeError,
                   plan_.place(forward, layer), ": counts have shape ", counts_SE.sizes(), "; expected [", num_segments, ", ",
                   num_experts_, "], segments of the forward and experts");
  check_tokens(forward, layer, statistics.counts.tokens_G);
  if (has(forward, layer)) {
    check_same_counts(forward, layer, counts_SE);
    return false;
  }
  counts_LSE_.select(0, layer).narrow(0, begin, num_segments).copy_(counts_SE);
  if (statistics.first_counts_SE.defined()) {
    first_counts_LSE_.select(0, layer).narrow(0, begin, num_segments).copy_(statistics.first_counts_SE);
  }
  keep_sums(forward, layer, TokenSum::Probs, statistics.prob_sums_SE);
  keep_sums(forward, layer, TokenSum::SquaredProbs, statistics.prob_squares_SE);
  keep_sums(forward, layer, TokenSum::Load, statistics.load_sums_SE);
  if (statistics.squared_lse_S.defined()) {
    lse_LS_.select(0, layer).narrow(0, begin, num_segments).copy_(statistics.squared_lse_S);
  }
  seen_[static_cast<size_t>(forward * num_layers_ + layer)] = true;
  return true;
}

void StepLedger::keep_sums(int64_t forward, int64_t layer, TokenSum which, const at::Tensor& sums_SE) {
  if (!sums_SE.defined()) {
    has_sums_L_[static_cast<size_t>(which)][static_cast<size_t>(layer)] = false;
    return;
  }
  const int64_t begin = plan_.segments(forward).begin;
  sums_LSE_[static_cast<size_t>(which)].select(0, layer).narrow(0, begin, sums_SE.size(0)).copy_(sums_SE);
}

void StepLedger::check_tokens(int64_t forward, int64_t layer, const at::Tensor& tokens_S) const {
  const at::Tensor host_tokens_S = tokens_S.contiguous();
  const int64_t* tokens = host_tokens_S.const_data_ptr<int64_t>();
  const int64_t begin = plan_.segments(forward).begin;
  for (int64_t segment = 0; segment < tokens_S.size(0); ++segment) {
    const int64_t planned = plan_.segment_tokens[static_cast<size_t>(begin + segment)];
    SWITCHYARD_CHECK(tokens[segment] == planned, ShapeError, plan_.place(forward, layer),
                     ": segment ", segment, " has ", tokens[segment], " valid tokens; the plan says ", planned,
                     ". Build the plan from the batch that is run");
  }
}

void StepLedger::check_same_counts(int64_t forward, int64_t layer, const at::Tensor& counts_SE) const {
  const int64_t begin = plan_.segments(forward).begin;
  const at::Tensor host_SE = counts_SE.contiguous();
  const int64_t* now = host_SE.const_data_ptr<int64_t>();
  const int64_t* first = counts_LSE_.const_data_ptr<int64_t>() + (layer * plan_.num_segments() + begin) * num_experts_;
  for (int64_t index = 0; index < host_SE.numel(); ++index) {
    SWITCHYARD_CHECK(now[index] == first[index], StateError, plan_.place(forward, layer),
                     ": the second run sent ", now[index], " slots of segment ", index / num_experts_, " to expert ",
                     index % num_experts_, ", the first ", first[index],
                     ". The routing does not replay: run both with the same weights, inputs, random streams and kernels, or "
                     "replay the recorded choices");
  }
}

template <typename Ledger, typename Body>
void StepLedger::for_each_part(Ledger& ledger, const Body& body) {
  body("counts_LSE", ledger.counts_LSE_);
  body("first_counts_LSE", ledger.first_counts_LSE_);
  body("squared_lse_LS", ledger.lse_LS_);
  body("recorded_FL", ledger.seen_);
  for (size_t which = 0; which < kTokenSums; ++which) {
    body(join_text("sums_LSE.", which), ledger.sums_LSE_[which]);
    body(join_text("has_sums_L.", which), ledger.has_sums_L_[which]);
  }
}

void StepLedger::save(StepProgress& progress) const {
  put(progress, "segment_tokens_S", plan_.segment_tokens);
  for_each_part(*this, [&progress](const std::string& name, const auto& part) { put(progress, name, part); });
}

void StepLedger::restore(const StepProgress& progress) {
  std::vector<int64_t> tokens_S(plan_.segment_tokens.size());
  take(progress, "segment_tokens_S", tokens_S);
  SWITCHYARD_CHECK(tokens_S == plan_.segment_tokens, ShapeError,
                   "saved progress of a step was counted over segments of other lengths; resume with the plan it began with");
  for_each_part(*this, [&progress](const std::string& name, auto& part) { take(progress, name, part); });
}

bool StepLedger::has(int64_t forward, int64_t layer) const { return seen_[static_cast<size_t>(forward * num_layers_ + layer)]; }

bool StepLedger::has_sums(TokenSum which, int64_t layer) const {
  return has_sums_L_[static_cast<size_t>(which)][static_cast<size_t>(layer)];
}

std::vector<int64_t> StepLedger::counts_E(Counted which, int64_t layer, const SegmentRange& range) const {
  return sum_rows<int64_t>(which == Counted::Slots ? counts_LSE_ : first_counts_LSE_, layer, range);
}

std::vector<double> StepLedger::sums_E(TokenSum which, int64_t layer, const SegmentRange& range) const {
  return sum_rows<double>(sums_LSE_[static_cast<size_t>(which)], layer, range);
}

const double* StepLedger::segment_probs_E(int64_t layer, int64_t segment) const {
  return sums_LSE_[0].const_data_ptr<double>() + (layer * plan_.num_segments() + segment) * num_experts_;
}

double StepLedger::squared_lse(int64_t layer) const { return lse_LS_.select(0, layer).sum().item<double>(); }

at::Tensor StepLedger::micro_batch_counts_MLE() const {
  at::Tensor counts_MLE = at::zeros({plan_.micro_batch_count(), num_layers_, num_experts_}, at::kLong);
  for (int64_t segment = 0; segment < plan_.num_segments(); ++segment) {
    counts_MLE.select(0, plan_.segment_micro_batch[static_cast<size_t>(segment)]).add_(counts_LSE_.select(1, segment));
  }
  return counts_MLE;
}

}  // namespace switchyard
