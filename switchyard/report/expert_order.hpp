#pragma once
// An order of experts in which a domain x expert table shows its structure. N domains, E experts.

#include <cstdint>
#include <vector>

namespace switchyard {

/// Share of domain d's tokens that send one of their K slots to expert e: K C_de / sum_e C_de, in [0, 1] when a token's
/// experts are distinct; K/E if the domain is spread evenly. A domain without a slot gives zeros.
[[nodiscard]] std::vector<std::vector<double>> token_shares_NE(const std::vector<std::vector<int64_t>>& counts_NE,
                                                               int64_t num_chosen);

/// Experts by the domain that uses them most (domains weighing equally), in the order of the rows; within a domain by falling
/// share of that domain; experts that nobody uses last. Ties: lower index first. So a permutation of experts changes only
/// the numbers, and a table of specialists becomes a staircase; an even table stays even whatever its order.
[[nodiscard]] std::vector<int64_t> expert_order(const std::vector<std::vector<double>>& shares_NE);

}  // namespace switchyard
