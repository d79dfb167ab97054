#include "switchyard/balance/statistics.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/special_ndtr.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Row sums of values_TX by segment, in double, [S, X]. One pass in token order: deterministic, and no double copy of the rows.
template <typename Number>
void add_rows(const at::Tensor& values_TX, const int64_t* segments, double* sums) {
  const Number* values = values_TX.const_data_ptr<Number>();
  const int64_t width = values_TX.size(1);
  for (int64_t token = 0; token < values_TX.size(0); ++token) {
    if (segments[token] < 0) continue;
    double* sum = sums + segments[token] * width;
    const Number* row = values + token * width;
    for (int64_t column = 0; column < width; ++column) sum[column] += static_cast<double>(row[column]);
  }
}

at::Tensor sum_by_segment(const at::Tensor& values_TX, const at::Tensor& segment_T, int64_t num_segments) {
  const at::Tensor host_TX = values_TX.detach().to(at::kCPU).contiguous();
  const at::Tensor host_segment_T = segment_T.to(at::kCPU).contiguous();
  at::Tensor sums_SX = at::zeros({num_segments, host_TX.size(1)}, at::kDouble);
  const int64_t* segments = host_segment_T.const_data_ptr<int64_t>();
  double* sums = sums_SX.mutable_data_ptr<double>();
  if (host_TX.scalar_type() == at::kDouble) {
    add_rows<double>(host_TX, segments, sums);
  } else {
    add_rows<float>(host_TX.to(at::kFloat), segments, sums);
  }
  return sums_SX;
}

void check_finite(const at::Tensor& sums_SX, std::string_view what) {
  const double* sums = sums_SX.const_data_ptr<double>();
  const int64_t width = sums_SX.size(1);
  for (int64_t index = 0; index < sums_SX.numel(); ++index) {
    SWITCHYARD_CHECK(std::isfinite(sums[index]), ShapeError, what, " summed over segment ", index / width, ", column ",
                     index % width, " give ", sums[index],
                     "; expected finite values. Training has diverged, or an input is not finite");
  }
}

void check_scores(const at::Tensor& scores_TE, const Routing& routing, std::string_view what) {
  SWITCHYARD_CHECK(scores_TE.dim() == 2 && scores_TE.size(0) == routing.num_tokens && scores_TE.size(1) == routing.num_experts,
                   ShapeError, what, " have shape ", scores_TE.sizes(), "; expected [", routing.num_tokens, ", ",
                   routing.num_experts, "], tokens and experts of the routing");
  SWITCHYARD_CHECK(scores_TE.is_floating_point(), ShapeError, what, " are ", scores_TE.scalar_type(), "; expected floating point");
}

// Each row of probabilities sums to 1, so those of a segment sum to its number of tokens (fp32 rows: to about 1e-6 each).
void check_normalised(const at::Tensor& prob_sums_SE, const at::Tensor& tokens_S) {
  constexpr double kTolerance = 1e-3;
  const at::Tensor sums_S = prob_sums_SE.sum(1);
  const at::Tensor host_tokens_S = tokens_S.contiguous();
  for (int64_t segment = 0; segment < sums_S.size(0); ++segment) {
    const double sum = sums_S.const_data_ptr<double>()[segment];
    const auto tokens = static_cast<double>(host_tokens_S.const_data_ptr<int64_t>()[segment]);
    SWITCHYARD_CHECK(std::abs(sum - tokens) <= kTolerance * std::max(tokens, 1.0), ShapeError, "router probabilities of the ",
                     tokens, " tokens of segment ", segment, " sum to ", sum,
                     "; expected 1 a token. Pass probabilities, not logits; normalise sigmoid scores over the experts first");
  }
}

at::Tensor first_counts(const Routing& routing, const at::Tensor& segment_T, int64_t num_segments) {
  SWITCHYARD_CHECK(routing.ids_TK.defined(), UsageError,
                   "first choices are to be counted, but the router chooses no fixed number of experts in order; use a method "
                   "that counts all choices, such as lbl");
  const at::Tensor ids_T1 = routing.ids_TK.narrow(1, 0, 1);
  const Routing first = routing_from_top_k(ids_T1, at::ones(ids_T1.sizes(), at::kFloat), routing.num_experts);
  return count_experts(first, segment_T, std::max<int64_t>(num_segments, 1)).counts_GE.to(at::kCPU).narrow(0, 0, num_segments);
}

}  // namespace

at::Tensor smooth_load(const at::Tensor& logits_TE, int64_t num_chosen) {
  SWITCHYARD_CHECK(num_chosen >= 1 && num_chosen < logits_TE.size(1), UsageError, "load: ", num_chosen, " chosen of ",
                   logits_TE.size(1), " experts; expected fewer chosen than experts");
  const at::Tensor largest_TK = std::get<0>(at::topk(logits_TE, num_chosen + 1, -1));
  const at::Tensor last_chosen_T1 = largest_TK.narrow(1, num_chosen - 1, 1);
  const at::Tensor first_left_T1 = largest_TK.narrow(1, num_chosen, 1);
  // For a chosen expert the K-th largest of the others is the first that was left out.
  const at::Tensor border_TE = at::where(logits_TE.ge(last_chosen_T1), first_left_T1, last_chosen_T1);
  return at::special_ndtr(logits_TE.sub(border_TE).div(kLoadNoise));
}

SegmentStatistics segment_statistics(const Routing& routing, const at::Tensor& segment_T, int64_t num_segments,
                                     const WantedStatistics& wanted) {
  const at::NoGradGuard no_grad;
  SegmentStatistics statistics;
  // A forward may hold nothing but padding and so no segment; the counting still checks that its tokens say so.
  statistics.counts = count_experts(routing, segment_T, std::max<int64_t>(num_segments, 1));
  statistics.counts.counts_GE = statistics.counts.counts_GE.to(at::kCPU).narrow(0, 0, num_segments);
  statistics.counts.tokens_G = statistics.counts.tokens_G.to(at::kCPU).narrow(0, 0, num_segments);
  if (wanted.first_choices) statistics.first_counts_SE = first_counts(routing, segment_T, num_segments);
  if (routing.probs_TE.defined()) {
    check_scores(routing.probs_TE, routing, "router probabilities");
    statistics.prob_sums_SE = sum_by_segment(routing.probs_TE, segment_T, num_segments);
    check_finite(statistics.prob_sums_SE, "router probabilities");
    check_normalised(statistics.prob_sums_SE, statistics.counts.tokens_G);
    if (wanted.prob_squares) {
      statistics.prob_squares_SE = sum_by_segment(routing.probs_TE.square(), segment_T, num_segments);
    }
  }
  if (!routing.logits_TE.defined()) return statistics;
  check_scores(routing.logits_TE, routing, "router logits");
  if (wanted.load) {
    statistics.load_sums_SE = sum_by_segment(smooth_load(routing.logits_TE, wanted.num_chosen), segment_T, num_segments);
    check_finite(statistics.load_sums_SE, "loads estimated from the router logits");
  }
  if (wanted.squared_lse) {
    const at::Tensor lse_T1 = at::logsumexp(routing.logits_TE, {-1}, /*keepdim=*/true);
    const at::Tensor sums_S1 = sum_by_segment(lse_T1.square(), segment_T, num_segments);
    check_finite(sums_S1, "squared logsumexp of the router logits");
    statistics.squared_lse_S = sums_S1.squeeze(1);
  }
  return statistics;
}

}  // namespace switchyard
