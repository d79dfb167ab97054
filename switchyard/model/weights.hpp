#pragma once
// How the parameters of the decoder are made, named, kept and given their gradients.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/parameter.hpp"
#include "switchyard/model/decoder.hpp"

namespace switchyard {

/// Makes parameters. Each named part is drawn from its own stream, so a part has the same values whatever else the model has.
struct WeightSource {
  uint64_t seed = 0;
  double deviation = 0.02;
  at::ScalarType master_type = at::kFloat;   // kDouble for exactness tests
  at::ScalarType compute_type = at::kFloat;  // of matrices; vectors and the router compute in the master type
  Communicator* expert_ranks = nullptr;      // each holds an equal share of the experts; null: all experts are here

  /// Drawn from N(0, deviation^2). `parts` name consecutive pieces along the first dimension with their sizes there; the
  /// pieces are drawn one by one. Empty: the whole under its own name.
  struct Part {
    std::string name;
    int64_t rows = 0;
  };
  [[nodiscard]] Parameter matrix(const std::string& name, c10::IntArrayRef sizes, const std::vector<Part>& parts = {}) const;
  /// One matrix for each expert, [E, rows, columns]; `parts` divide the rows of each, their names are made from
  /// `prefix` + expert + "." + part. With expert_ranks only this rank's, [E / R, rows, columns], which have the values that
  /// they have where all are made.
  /// @throws ConfigError unless the ranks divide the experts
  [[nodiscard]] Parameter expert_matrices(const std::string& name, int64_t num_experts, int64_t columns,
                                          const std::string& prefix, const std::vector<Part>& parts) const;
  /// Ones, without weight decay, computed in the master type.
  [[nodiscard]] Parameter norm(const std::string& name, int64_t width) const;
};

/// Where the values of a parameter's master are to be found, or put: master_of, or memory to be filled.
using MasterValues = std::function<at::Tensor(const Parameter&)>;

/// Views of the parts of a stacked matrix, as WeightSource::matrix and ::expert_matrices divide it.
[[nodiscard]] std::vector<NamedTensor> matrix_parts(const at::Tensor& matrix, const std::vector<WeightSource::Part>& parts);
[[nodiscard]] std::vector<NamedTensor> expert_parts(const at::Tensor& matrices_E, const std::string& prefix,
                                                    const std::vector<WeightSource::Part>& parts, int64_t first_expert = 0);

/// Makes `compute` from `master`: the same storage where the types agree; for bf16 beside fp32 the master is split into halves and
/// let go. A leaf, with gradient if trained.
/// @throws UsageError for other types
void attach_compute(Parameter& parameter, at::ScalarType compute_type);
/// The master: its storage, or joined from its halves. Where ranks share updates the lower halves of others' rows are out of date
/// (train/update_shares.hpp).
[[nodiscard]] at::Tensor master_of(const Parameter& parameter);
/// Copies values into the master, whole or in halves, and so into what computes.
/// @throws ShapeError unless they have its shape
void set_master(Parameter& parameter, const at::Tensor& values);
/// Adds the gradient of what computes into `grad`, and clears it: the first of a step stays in its type, sums are in the master's.
void collect_gradient(Parameter& parameter);

}  // namespace switchyard
