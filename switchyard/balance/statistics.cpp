#include "switchyard/balance/statistics.hpp"

#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>

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
}

}  // namespace

SegmentStatistics segment_statistics(const Routing& routing, const at::Tensor& segment_T, int64_t num_segments,
                                     TokenStatistics token_statistics) {
  SegmentStatistics statistics;
  // A forward may hold nothing but padding and so no segment; the counting still checks that its tokens say so.
  statistics.counts = count_experts(routing, segment_T, std::max<int64_t>(num_segments, 1));
  statistics.counts.counts_GE = statistics.counts.counts_GE.to(at::kCPU).narrow(0, 0, num_segments);
  statistics.counts.tokens_G = statistics.counts.tokens_G.to(at::kCPU).narrow(0, 0, num_segments);
  if (routing.probs_TE.defined()) {
    check_scores(routing.probs_TE, routing, "router probabilities");
    statistics.prob_sums_SE = sum_by_segment(routing.probs_TE, segment_T, num_segments);
    check_finite(statistics.prob_sums_SE, "router probabilities");
  }
  if (token_statistics == TokenStatistics::SquaredLse && routing.logits_TE.defined()) {
    check_scores(routing.logits_TE, routing, "router logits");
    const at::Tensor lse_T1 = at::logsumexp(routing.logits_TE.detach(), {-1}, /*keepdim=*/true);
    const at::Tensor sums_S1 = sum_by_segment(lse_T1.square(), segment_T, num_segments);
    check_finite(sums_S1, "squared logsumexp of the router logits");
    statistics.squared_lse_S = sums_S1.squeeze(1);
  }
  return statistics;
}

}  // namespace switchyard
