#pragma once
// How far experts have become specialists of the data's domains. Pure functions of integer counts.
// N domains, E experts, K chosen per token, X documents, Q label permutations. Informations are in nats.
//
// Everything starts from J_NE = C_de / (N' sum_e C_de): the share of (domain, expert) when each of the N' domains that have
// slots weighs 1/N'. A domain without slots has a zero row and takes part in nothing; with no slots at all every number is 0.
// Definitions and their reasons: docs/metrics.md.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "switchyard/core/rng.hpp"
#include "switchyard/measure/matrix.hpp"

namespace switchyard {

/// J_NE of the header comment: entries >= 0, sum 1 (0 without slots).
/// @throws ShapeError for a negative count or a domain's sum that does not fit int64
[[nodiscard]] Matrix<double> joint_shares(const Matrix<int64_t>& counts_NE);

/// The same for rows of non-negative weights, such as a router's prescribed shares pi_NE.
[[nodiscard]] Matrix<double> joint_shares(const Matrix<double>& weights_NE);

/// I(D; E) = sum J_de ln(J_de / (J_d. J_.e)), in [0, min(ln N, ln E)].
[[nodiscard]] double mutual_information(const Matrix<double>& joint_NE);

/// sum_e max_d J_de: how often the most frequent domain of the expert is the right guess. In [1/N', 1].
[[nodiscard]] double expert_purity(const Matrix<double>& joint_NE);

/// Jensen-Shannon divergence between the expert distributions of each two domains, in [0, ln 2]; symmetric, diagonal 0. NaN
/// where one of the two domains has no slots.
[[nodiscard]] Matrix<double> jensen_shannon(const Matrix<int64_t>& counts_NE);

/// What the reference router attains, and what S and purity are measured against.
struct Ceiling {
  double information = 0.0;
  double purity = 0.0;
};

/// True where N domains and E experts divide so that the reference attains min(ln N, ln(E/K)): N divides E when N K <= E; K
/// divides E and E/K divides N when N K >= E.
[[nodiscard]] bool reference_divides(int64_t num_domains, int64_t num_experts, int64_t num_chosen);

/// Where N, E and K divide: information min(ln N, ln(E/K)), purity min(1, E/(K N)), upper bounds of any router with K
/// distinct experts per token. Elsewhere: those of the reference router itself, which another router may exceed.
/// @param reference_NE  the reference router's shares (rows sum to K, or to anything: they are weighed equally); needed
///                      only where N, E, K do not divide
/// @throws UsageError where it is needed and missing; ShapeError where its shape is not N x E
[[nodiscard]] Ceiling attainable(int64_t num_domains, int64_t num_experts, int64_t num_chosen,
                                 const std::optional<Matrix<double>>& reference_NE = std::nullopt);

/// Domain labels of the documents, permuted: row q is a random reordering of domain_X. Documents keep their size, domains
/// their number of documents.
/// @param permutations  Q >= 1; at least 200 for numbers that are shown
[[nodiscard]] Matrix<int64_t> permute_labels(std::span<const int64_t> domain_X, int64_t permutations, Rng& rng);

/// Sums of the rows of counts_XE by label. @throws ShapeError for a label outside [0, N)
[[nodiscard]] Matrix<int64_t> counts_by_domain(const Matrix<int64_t>& counts_XE, std::span<const int64_t> label_X,
                                               int64_t num_domains);

/// What unrelated labels would measure, over the Q permutations.
struct NullLevel {
  double information = 0.0;            // mean: I0
  double information_deviation = 0.0;  // population deviation over permutations
  double purity = 0.0;                 // mean
};
/// Exact integer sums; costs Q X E additions. With one document per domain a permutation only renames the domains: I0 = I.
[[nodiscard]] NullLevel null_level(const Matrix<int64_t>& counts_XE, const Matrix<int64_t>& labels_QX, int64_t num_domains);

/// S = (I - I0) / (Imax - I0). 0 where there is no room between null and ceiling (Imax - I0 <= 1e-9), as with one domain.
[[nodiscard]] double specialization_score(double information, double null, double ceiling);

/// All of it, for the slots of one layer.
struct Specialization {
  double score = 0.0;  // S
  double information = 0.0;
  NullLevel null;
  Ceiling ceiling;
  double purity = 0.0;
};

struct SpecializationShape {
  int64_t num_domains = 0;  // N
  int64_t num_chosen = 0;   // K
  std::optional<Matrix<double>> reference_NE = std::nullopt;  // see attainable(); rows of domains without slots are left out
};

/// Over requested slots, against attainable() of the domains that have slots.
[[nodiscard]] Specialization slot_specialization(const Matrix<int64_t>& slots_XE, std::span<const int64_t> domain_X,
                                                 const Matrix<int64_t>& labels_QX, const SpecializationShape& shape);

/// Over first choices, against min(ln N', ln E). The reference itself measures less than 1 where several domains share
/// experts, because its first choice is the lowest of the experts drawn, not one of a score.
[[nodiscard]] Specialization first_choice_specialization(const Matrix<int64_t>& first_choice_XE,
                                                         std::span<const int64_t> domain_X,
                                                         const Matrix<int64_t>& labels_QX, int64_t num_domains);

}  // namespace switchyard
