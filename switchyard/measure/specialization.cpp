#include "switchyard/measure/specialization.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// Below this there is nothing between null and ceiling to measure in; rounding is a million times smaller.
constexpr double kNoRoom = 1e-9;

int64_t row_sum(std::span<const int64_t> row, int64_t domain) {
  int64_t sum = 0;
  for (const int64_t count : row) {
    SWITCHYARD_CHECK(count >= 0, ShapeError, "specialization: domain ", domain, " has the count ", count,
                     "; expected at least 0");
    SWITCHYARD_CHECK(!__builtin_add_overflow(sum, count, &sum), ShapeError, "specialization: the counts of domain ",
                     domain, " do not fit 64 bits");
  }
  return sum;
}

double row_sum(std::span<const double> row, int64_t domain) {
  double sum = 0.0;
  for (const double weight : row) {
    SWITCHYARD_CHECK(weight >= 0.0 && std::isfinite(weight), ShapeError, "specialization: domain ", domain,
                     " has the share ", weight, "; expected a finite number of at least 0");
    sum += weight;
  }
  return sum;
}

template <typename T>
Matrix<double> equal_domain_shares(const Matrix<T>& table_NE) {
  std::vector<double> sums;
  double present = 0.0;
  for (int64_t d = 0; d < table_NE.rows(); ++d) {
    sums.push_back(static_cast<double>(row_sum(table_NE.row(d), d)));
    if (sums.back() > 0.0) present += 1.0;
  }
  Matrix<double> joint_NE(table_NE.rows(), table_NE.columns());
  for (int64_t d = 0; d < table_NE.rows(); ++d) {
    const double sum = sums[static_cast<size_t>(d)];
    if (sum <= 0.0) continue;
    for (int64_t e = 0; e < table_NE.columns(); ++e) {
      joint_NE(d, e) = static_cast<double>(table_NE(d, e)) / (sum * present);
    }
  }
  return joint_NE;
}

// Divergence of p from the middle of p and q, halved: one of the two terms of Jensen-Shannon.
double half_divergence(std::span<const double> p, double p_sum, std::span<const double> q, double q_sum) {
  double divergence = 0.0;
  for (size_t e = 0; e < p.size(); ++e) {
    if (p[e] <= 0.0) continue;
    const double share = p[e] / p_sum;
    divergence += 0.5 * share * std::log(2.0 * share / (share + q[e] / q_sum));
  }
  return divergence;
}

void check_labels(std::span<const int64_t> label_X, int64_t num_domains) {
  for (size_t x = 0; x < label_X.size(); ++x) {
    SWITCHYARD_CHECK(label_X[x] >= 0 && label_X[x] < num_domains, ShapeError, "specialization: document ", x,
                     " is of domain ", label_X[x], "; expected 0 to ", num_domains - 1);
  }
}

// Domains that have slots, ascending.
std::vector<int64_t> present_domains(const Matrix<int64_t>& counts_NE) {
  std::vector<int64_t> present;
  for (int64_t d = 0; d < counts_NE.rows(); ++d) {
    if (row_sum(counts_NE.row(d), d) > 0) present.push_back(d);
  }
  return present;
}

std::optional<Matrix<double>> select_rows(const std::optional<Matrix<double>>& table_NE,
                                          const std::vector<int64_t>& rows, int64_t num_domains) {
  if (!table_NE.has_value()) return std::nullopt;
  SWITCHYARD_CHECK(table_NE->rows() == num_domains, ShapeError, "specialization: the reference has ", table_NE->rows(),
                   " rows; expected one for each of ", num_domains, " domains");
  Matrix<double> selected(static_cast<int64_t>(rows.size()), table_NE->columns());
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::span<const double> source = table_NE->row(rows[i]);
    std::copy(source.begin(), source.end(), selected.row(static_cast<int64_t>(i)).begin());
  }
  return selected;
}

Specialization measure(const Matrix<int64_t>& counts_XE, const Matrix<int64_t>& counts_NE,
                       const Matrix<int64_t>& labels_QX, const Ceiling& ceiling) {
  const Matrix<double> joint_NE = joint_shares(counts_NE);
  Specialization result;
  result.information = mutual_information(joint_NE);
  result.purity = expert_purity(joint_NE);
  result.null = null_level(counts_XE, labels_QX, counts_NE.rows());
  result.ceiling = ceiling;
  result.score = specialization_score(result.information, result.null.information, ceiling.information);
  return result;
}

}  // namespace

Matrix<double> joint_shares(const Matrix<int64_t>& counts_NE) { return equal_domain_shares(counts_NE); }
Matrix<double> joint_shares(const Matrix<double>& weights_NE) { return equal_domain_shares(weights_NE); }

double mutual_information(const Matrix<double>& joint_NE) {
  std::vector<double> expert_E(static_cast<size_t>(joint_NE.columns()));
  std::vector<double> domain_N(static_cast<size_t>(joint_NE.rows()));
  for (int64_t d = 0; d < joint_NE.rows(); ++d) {
    for (int64_t e = 0; e < joint_NE.columns(); ++e) {
      expert_E[static_cast<size_t>(e)] += joint_NE(d, e);
      domain_N[static_cast<size_t>(d)] += joint_NE(d, e);
    }
  }
  double information = 0.0;
  for (int64_t d = 0; d < joint_NE.rows(); ++d) {
    for (int64_t e = 0; e < joint_NE.columns(); ++e) {
      const double share = joint_NE(d, e);
      if (share <= 0.0) continue;
      information += share * std::log(share / (domain_N[static_cast<size_t>(d)] * expert_E[static_cast<size_t>(e)]));
    }
  }
  return std::max(information, 0.0);  // rounding may leave -1e-17
}

double expert_purity(const Matrix<double>& joint_NE) {
  double purity = 0.0;
  for (int64_t e = 0; e < joint_NE.columns(); ++e) {
    double largest = 0.0;
    for (int64_t d = 0; d < joint_NE.rows(); ++d) largest = std::max(largest, joint_NE(d, e));
    purity += largest;
  }
  return purity;
}

Matrix<double> jensen_shannon(const Matrix<int64_t>& counts_NE) {
  const Matrix<double> joint_NE = joint_shares(counts_NE);
  std::vector<double> sums;
  for (int64_t d = 0; d < joint_NE.rows(); ++d) sums.push_back(row_sum(joint_NE.row(d), d));
  Matrix<double> divergence_NN(counts_NE.rows(), counts_NE.rows());
  for (int64_t i = 0; i < counts_NE.rows(); ++i) {
    const double sum_i = sums[static_cast<size_t>(i)];
    for (int64_t j = i; j < counts_NE.rows(); ++j) {
      const double sum_j = sums[static_cast<size_t>(j)];
      double value = std::numeric_limits<double>::quiet_NaN();
      if (sum_i > 0.0 && sum_j > 0.0) {
        value = half_divergence(joint_NE.row(i), sum_i, joint_NE.row(j), sum_j) +
                half_divergence(joint_NE.row(j), sum_j, joint_NE.row(i), sum_i);
        value = i == j ? 0.0 : std::clamp(value, 0.0, std::numbers::ln2);  // against rounding
      }
      divergence_NN(i, j) = value;
      divergence_NN(j, i) = value;
    }
  }
  return divergence_NN;
}

bool reference_divides(int64_t num_domains, int64_t num_experts, int64_t num_chosen) {
  if (num_domains < 1 || num_chosen < 1 || num_experts < num_chosen) return false;
  if (num_domains * num_chosen <= num_experts) return num_experts % num_domains == 0;
  return num_experts % num_chosen == 0 && num_domains % (num_experts / num_chosen) == 0;
}

Ceiling attainable(int64_t num_domains, int64_t num_experts, int64_t num_chosen,
                   const std::optional<Matrix<double>>& reference_NE) {
  SWITCHYARD_CHECK(num_domains >= 1 && num_chosen >= 1 && num_chosen <= num_experts, ShapeError,
                   "specialization: ", num_domains, " domains, ", num_experts, " experts, ", num_chosen,
                   " chosen; expected at least 1 domain and 1 to E chosen");
  if (reference_divides(num_domains, num_experts, num_chosen)) {
    const double groups = static_cast<double>(num_experts) / static_cast<double>(num_chosen);
    const double domains = static_cast<double>(num_domains);
    return {std::log(std::min(domains, groups)), std::min(1.0, groups / domains)};
  }
  SWITCHYARD_CHECK(reference_NE.has_value(), UsageError, "specialization: ", num_domains, " domains, ", num_experts,
                   " experts and ", num_chosen, " chosen do not divide, so the ceiling is the reference router's own; ",
                   "pass its shares as reference_NE");
  SWITCHYARD_CHECK(reference_NE->rows() == num_domains && reference_NE->columns() == num_experts, ShapeError,
                   "specialization: reference shares of ", reference_NE->rows(), " x ", reference_NE->columns(),
                   "; expected ", num_domains, " x ", num_experts);
  const Matrix<double> joint_NE = joint_shares(*reference_NE);
  return {mutual_information(joint_NE), expert_purity(joint_NE)};
}

Matrix<int64_t> permute_labels(std::span<const int64_t> domain_X, int64_t permutations, Rng& rng) {
  SWITCHYARD_CHECK(permutations >= 1, UsageError, "specialization: ", permutations,
                   " label permutations; expected at least 1 (200 for numbers that are shown)");
  Matrix<int64_t> labels_QX(permutations, static_cast<int64_t>(domain_X.size()));
  for (int64_t p = 0; p < permutations; ++p) {
    const std::span<int64_t> row = labels_QX.row(p);
    std::copy(domain_X.begin(), domain_X.end(), row.begin());
    for (size_t left = row.size(); left > 1; --left) std::swap(row[left - 1], row[static_cast<size_t>(rng.below(left))]);
  }
  return labels_QX;
}

Matrix<int64_t> counts_by_domain(const Matrix<int64_t>& counts_XE, std::span<const int64_t> label_X,
                                 int64_t num_domains) {
  SWITCHYARD_CHECK(static_cast<int64_t>(label_X.size()) == counts_XE.rows(), ShapeError, "specialization: ",
                   label_X.size(), " labels for ", counts_XE.rows(), " documents");
  check_labels(label_X, num_domains);
  Matrix<int64_t> counts_NE(num_domains, counts_XE.columns());
  for (int64_t x = 0; x < counts_XE.rows(); ++x) {
    const int64_t* source = counts_XE.row(x).data();
    int64_t* target = counts_NE.row(label_X[static_cast<size_t>(x)]).data();
    for (int64_t e = 0; e < counts_XE.columns(); ++e) target[e] += source[e];
  }
  return counts_NE;
}

NullLevel null_level(const Matrix<int64_t>& counts_XE, const Matrix<int64_t>& labels_QX, int64_t num_domains) {
  NullLevel level;
  if (labels_QX.rows() == 0) return level;
  const double count = static_cast<double>(labels_QX.rows());
  std::vector<double> informations;
  for (int64_t p = 0; p < labels_QX.rows(); ++p) {
    const Matrix<double> joint_NE = joint_shares(counts_by_domain(counts_XE, labels_QX.row(p), num_domains));
    informations.push_back(mutual_information(joint_NE));
    level.purity += expert_purity(joint_NE) / count;
  }
  level.information = std::accumulate(informations.begin(), informations.end(), 0.0) / count;
  double squares = 0.0;
  for (const double value : informations) squares += (value - level.information) * (value - level.information);
  level.information_deviation = std::sqrt(squares / count);
  return level;
}

double specialization_score(double information, double null, double ceiling) {
  return ceiling - null > kNoRoom ? (information - null) / (ceiling - null) : 0.0;
}

Specialization slot_specialization(const Matrix<int64_t>& slots_XE, std::span<const int64_t> domain_X,
                                   const Matrix<int64_t>& labels_QX, const SpecializationShape& shape) {
  const Matrix<int64_t> counts_NE = counts_by_domain(slots_XE, domain_X, shape.num_domains);
  const std::vector<int64_t> present = present_domains(counts_NE);
  if (present.empty()) return {};
  const Ceiling ceiling = attainable(static_cast<int64_t>(present.size()), slots_XE.columns(), shape.num_chosen,
                                     select_rows(shape.reference_NE, present, shape.num_domains));
  return measure(slots_XE, counts_NE, labels_QX, ceiling);
}

Specialization first_choice_specialization(const Matrix<int64_t>& first_choice_XE, std::span<const int64_t> domain_X,
                                           const Matrix<int64_t>& labels_QX, int64_t num_domains) {
  const Matrix<int64_t> counts_NE = counts_by_domain(first_choice_XE, domain_X, num_domains);
  const size_t present = present_domains(counts_NE).size();
  if (present == 0) return {};
  const double domains = static_cast<double>(present);
  const double experts = static_cast<double>(first_choice_XE.columns());
  return measure(first_choice_XE, counts_NE, labels_QX,
                 {std::log(std::min(domains, experts)), std::min(1.0, experts / domains)});
}

}  // namespace switchyard
