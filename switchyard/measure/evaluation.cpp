#include "switchyard/measure/evaluation.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/measure/agreement.hpp"
#include "switchyard/measure/specialization.hpp"

namespace switchyard {
namespace {

double loss_of(double sum, int64_t tokens) {
  return tokens > 0 ? sum / static_cast<double>(tokens) : std::numeric_limits<double>::quiet_NaN();
}

std::vector<int64_t> sum_of_rows(const Matrix<int64_t>& counts_NE) {
  std::vector<int64_t> sum_E(static_cast<size_t>(counts_NE.columns()));
  for (int64_t d = 0; d < counts_NE.rows(); ++d) {
    for (int64_t e = 0; e < counts_NE.columns(); ++e) sum_E[static_cast<size_t>(e)] += counts_NE(d, e);
  }
  return sum_E;
}

// Losses and perplexities; every scored token weighs the same in the total.
void fill_losses(std::span<const DomainLoss> losses, EvaluationRecord& record) {
  double sum = 0.0;
  for (const DomainLoss& domain : losses) {
    SWITCHYARD_CHECK(domain.tokens >= 0, ShapeError, "evaluation: domain ", domain.name, " has ", domain.tokens,
                     " scored tokens");
    const double loss = loss_of(domain.loss_sum, domain.tokens);
    record.domains.push_back({domain.name, loss, std::exp(loss), domain.tokens});
    sum += domain.loss_sum;
    record.tokens += domain.tokens;
  }
  record.loss = loss_of(sum, record.tokens);
  record.perplexity = std::exp(record.loss);
}

void fill_means(EvaluationRecord& record) {
  std::vector<LoadMetrics> micro_batch;
  std::vector<LoadMetrics> global;
  const double count = static_cast<double>(record.layers.size());
  for (const LayerEvaluation& layer : record.layers) {
    micro_batch.push_back(layer.micro_batch);
    global.push_back(layer.global);
    record.specialization += layer.specialization / count;
    record.purity += layer.purity / count;
    record.agreement += layer.agreement / count;
    record.margin += layer.margin / count;
  }
  record.micro_batch = mean_load(micro_batch);
  record.global = mean_load(global);
}

}  // namespace

LayerEvaluation evaluate_layer(int64_t layer, const LayerTally& tally, const TallyShape& shape,
                               std::span<const int64_t> domain_X, const Matrix<int64_t>& labels_QX,
                               const std::optional<Matrix<double>>& reference_NE) {
  const Matrix<int64_t> counts_NE = counts_by_domain(tally.slots_XE, domain_X, shape.num_domains);
  const Specialization slots =
      slot_specialization(tally.slots_XE, domain_X, labels_QX, {shape.num_domains, shape.num_chosen, reference_NE});
  const Specialization first =
      first_choice_specialization(tally.first_choice_XE, domain_X, labels_QX, shape.num_domains);
  const Agreement agreement = best_agreement(joint_shares(counts_NE), shape.num_chosen);

  LayerEvaluation result;
  result.layer = layer;
  result.micro_batch = mean_load(tally.micro_batches);
  result.global = load_metrics(sum_of_rows(counts_NE));
  result.counts_NE = counts_NE.nested();
  result.specialization = slots.score;
  result.information = slots.information;
  result.information_null = slots.null.information;
  result.information_null_deviation = slots.null.information_deviation;
  result.information_ceiling = slots.ceiling.information;
  result.purity = slots.purity;
  result.purity_null = slots.null.purity;
  result.purity_ceiling = slots.ceiling.purity;
  result.specialization_first_choice = first.score;
  result.information_first_choice = first.information;
  result.information_first_choice_null = first.null.information;
  result.information_first_choice_ceiling = first.ceiling.information;
  result.agreement = agreement.value;
  result.agreement_floor = agreement.floor;
  result.jensen_shannon_NN = jensen_shannon(counts_NE).nested();
  if (tally.margin_tokens > 0) result.margin = tally.margin_sum / static_cast<double>(tally.margin_tokens);
  return result;
}

EvaluationRecord make_evaluation(const RoutingTally& tally, std::span<const DomainLoss> losses,
                                 const EvaluationInput& input, Rng& rng) {
  const TallyShape& shape = tally.shape();
  SWITCHYARD_CHECK(static_cast<int64_t>(losses.size()) == shape.num_domains, ShapeError, "evaluation: losses of ",
                   losses.size(), " domains; expected ", shape.num_domains);
  EvaluationRecord record;
  record.step = input.step;
  record.sequences = input.sequences;
  record.permutations = input.permutations;
  fill_losses(losses, record);
  const Matrix<int64_t> labels_QX = permute_labels(tally.domain_X(), input.permutations, rng);
  const std::vector<LayerTally>& layers = tally.layers();
  for (size_t l = 0; l < layers.size(); ++l) {
    record.layers.push_back(evaluate_layer(static_cast<int64_t>(l), layers[l], shape, tally.domain_X(), labels_QX,
                                           input.reference_NE));
  }
  fill_means(record);
  return record;
}

Matrix<double> matrix_from_tensor(const at::Tensor& values_XY) {
  SWITCHYARD_CHECK(values_XY.defined() && values_XY.dim() == 2, ShapeError, "expected a tensor of two dimensions");
  const at::Tensor host_XY = values_XY.detach().to(at::kCPU).to(at::kDouble).contiguous();
  Matrix<double> matrix(host_XY.size(0), host_XY.size(1));
  const double* values = host_XY.const_data_ptr<double>();
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.columns(); ++j) matrix(i, j) = values[i * matrix.columns() + j];
  }
  return matrix;
}

}  // namespace switchyard
