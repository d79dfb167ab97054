#pragma once
// How much of a routing the identity of the token explains by itself, and what is beyond it. Text of different domains has
// different words, so a router that looks only at the token id looks specialised.
// T tokens, V vocabulary, N domains, E experts.
//
// p(e | v), the share of expert e among the slots of token id v, is fitted on one half of the documents and applied to the
// other half, and the other way round; halves by a hash of the document number. The result J_NE is what a router would do that
// knows nothing but the token id. Definition: docs/metrics.md, "Beyond the token".
// Offered to callers of the library: no evaluation record has these numbers yet.

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "switchyard/core/routing.hpp"
#include "switchyard/measure/matrix.hpp"

namespace switchyard {

/// Counts of one half of the documents.
struct TokenTable {
  Matrix<int64_t> slots_VE;   // requested slots
  Matrix<int64_t> tokens_NV;  // valid tokens
};

/// Of one layer. Holds 2 V (E + N) integers.
class TokenIdentityTally {
 public:
  /// @throws ShapeError for a size below 1
  TokenIdentityTally(int64_t num_domains, int64_t vocab_size, int64_t num_experts);

  /// @param token_T, domain_T, document_T  int64 [T]; domain and document -1 at padding
  /// @throws ShapeError for labels of another type, length or range, or a padding token with a slot
  void add(const Routing& routing, const at::Tensor& token_T, const at::Tensor& domain_T, const at::Tensor& document_T);

  [[nodiscard]] const std::array<TokenTable, 2>& halves() const { return halves_; }

 private:
  std::array<TokenTable, 2> halves_;
};

/// J_NE of a router that draws the expert from p(e | v): domains that have tokens weigh equally, the others have zero rows. A
/// token id that the other half does not have uses that half's p(e).
[[nodiscard]] Matrix<double> token_identity_shares(const std::array<TokenTable, 2>& halves);

/// The same for the reference router on the same text: its slots of v are the shares of the domains in which v occurs.
/// @param reference_NE  the reference router's shares, rows of equal sum
[[nodiscard]] Matrix<double> token_identity_shares(const std::array<TokenTable, 2>& halves,
                                                   const Matrix<double>& reference_NE);

/// (I - Itok) / (Iref - Itok,ref): 0 for a router that looks at the token id alone, 1 for the reference router. 0 where the
/// reference has nothing beyond the token (Iref - Itok,ref <= 1e-9). All in nats.
[[nodiscard]] double beyond_token_score(double information, double token_information, double reference_information,
                                        double reference_token_information);

}  // namespace switchyard
