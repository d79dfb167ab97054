#pragma once
// From tallied routings and losses to the record of an evaluation. What each number means: docs/metrics.md.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "switchyard/core/rng.hpp"
#include "switchyard/measure/matrix.hpp"
#include "switchyard/measure/routing_tally.hpp"
#include "switchyard/measure/run_log.hpp"

namespace switchyard {

/// Held-out loss of one domain.
struct DomainLoss {
  std::string name;
  double loss_sum = 0.0;  // nats over its scored tokens
  int64_t tokens = 0;     // scored
};

struct EvaluationInput {
  int64_t step = 0;          // optimizer steps done
  int64_t sequences = 0;     // held-out sequences that were run
  int64_t permutations = 200;
  /// Shares of the reference router: needed where E, K and the number of domains that have slots do not divide.
  std::optional<Matrix<double>> reference_NE = std::nullopt;
};

/// Every field of the record. All layers and both choices use the same label permutations, drawn from `rng`.
/// @param tally   complete batches; with none, routing metrics are 0 and the loss is still given
/// @param losses  one for each domain of the tally, in its order
/// @throws ShapeError when numbers of domains differ; UsageError when the reference is needed and missing
[[nodiscard]] EvaluationRecord make_evaluation(const RoutingTally& tally, std::span<const DomainLoss> losses,
                                               const EvaluationInput& input, Rng& rng);

/// The part that concerns one layer.
/// @param labels_QX  permute_labels() of the documents' domains
[[nodiscard]] LayerEvaluation evaluate_layer(int64_t layer, const LayerTally& tally, const TallyShape& shape,
                                             std::span<const int64_t> domain_X, const Matrix<int64_t>& labels_QX,
                                             const std::optional<Matrix<double>>& reference_NE);

/// A floating-point tensor [X, Y] as plain numbers, such as the reference router's shares.
[[nodiscard]] Matrix<double> matrix_from_tensor(const at::Tensor& values_XY);

}  // namespace switchyard
