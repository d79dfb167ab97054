#pragma once
// Agreement with the best prescribed assignment of experts to domains. N domains, E experts, K chosen per token.

#include <cstdint>

#include "switchyard/measure/matrix.hpp"

namespace switchyard {

struct Agreement {
  double value = 0.0;  // share of slots inside the assignment, domains weighing equally; in [floor, 1]
  double floor = 0.0;  // m / E: what a routing reaches that does not know the domain and is balanced
  Matrix<int64_t> assignment_NE;  // 0 or 1; zero rows for domains without slots
};

/// max over x in {0, 1} of sum x_de J_de, where every domain gets m = max(K, E / N') experts and every expert m N' / E domains;
/// N' domains have slots. Where that does not divide, m is rounded up and experts get the integers next to m N' / E. Found
/// exactly, as a transport problem.
/// @param joint_NE  joint_shares() of the counts
/// @throws ShapeError unless 1 <= K <= E
[[nodiscard]] Agreement best_agreement(const Matrix<double>& joint_NE, int64_t num_chosen);

}  // namespace switchyard
