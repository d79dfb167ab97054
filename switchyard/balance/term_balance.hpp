#pragma once
// One balancing loss of one step: its groups, and the coefficients and values that follow from the totals. S segments of this
// rank, L MoE layers, E experts.

#include <cstdint>
#include <span>
#include <vector>

#include "switchyard/balance/config.hpp"
#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/method.hpp"
#include "switchyard/balance/totals.hpp"

namespace switchyard {

struct BalanceState;

class TermBalance {
 public:
  /// Declares to `totals` what it will ask for.
  /// @param per_layer  lambda of one layer
  /// @param totals     outlives this
  TermBalance(const BalanceTerm& term, GroupWeighting weighting, double per_layer, const BalanceShape& shape,
              const BalanceState& state, StepTotals& totals);

  [[nodiscard]] const BalanceTerm& term() const { return term_; }
  [[nodiscard]] const StatisticMethod& method() const { return method_; }
  [[nodiscard]] double per_layer() const { return per_layer_; }
  [[nodiscard]] bool injects() const { return method_.slope != nullptr && term_.coefficient != 0.0; }
  [[nodiscard]] bool lacks_history() const { return from_earlier_ && earlier_LE_.empty() && method_.value != nullptr; }

  /// Computes the groups whose totals are complete.
  void update();
  /// Whether the coefficients of these segments of this rank are known; those of a loss that does not act always are.
  [[nodiscard]] bool known(const SegmentRange& local) const;
  /// Adds lambda * w_g / T_g * slope of the segment's group, all but the contract's factor. Only where known.
  void add_coefficients(int64_t layer, int64_t local_segment, double factor, std::span<double> row_E) const;
  /// The factor of a token's own probabilities in its gradient, known from the start; 0 for most methods.
  [[nodiscard]] double curvature(int64_t local_segment) const;

  /// This rank's share of the values per layer: added over ranks they are sum_g w_g * value_g. After the last forward.
  [[nodiscard]] std::vector<double> value_shares_L() const;
  /// Whether all layers came with what the value needs.
  [[nodiscard]] bool has_values() const;

 private:
  struct Group : BalanceGroup {
    Holding holding = Holding::Mine;
    std::vector<double> rows{};           // [L, 1, E], [L, N, E] for DomainMeans; empty until known
    std::vector<int64_t> domain_sizes{};  // [N], for DomainMeans
  };

  [[nodiscard]] TokenSum token_sum() const { return method_.score == Score::Load ? TokenSum::Load : TokenSum::Probs; }
  [[nodiscard]] int64_t rows_per_layer() const;
  [[nodiscard]] bool complete(const Group& group) const;
  [[nodiscard]] std::vector<double> group_rows(const Group& group) const;
  [[nodiscard]] std::vector<double> fractions_E(const BalanceGroup& group, int64_t layer) const;
  [[nodiscard]] double value_share(const Group& group, int64_t layer) const;

  BalanceTerm term_;
  StatisticMethod method_;
  double per_layer_;
  BalanceShape shape_;
  StepTotals& totals_;
  bool from_earlier_;
  std::vector<std::vector<double>> earlier_LE_;  // f from earlier steps
  std::vector<Group> groups_;
  std::vector<int64_t> group_of_segment_;  // [S]; -1 for segments without tokens
};

}  // namespace switchyard
