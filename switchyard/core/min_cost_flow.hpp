#pragma once
// Exact integer transport at least cost: R rows with a supply each, C columns with a limit each, a capacity and a cost for
// each cell. Serves the reference router (how much of each domain goes to each expert) and the best assignment of experts
// to domains. Meant for up to some hundred rows and columns.

#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

struct TransportPlan {
  std::vector<int64_t> flow_RC;  // row-major [R, C]; every row ships its whole supply
  double cost = 0.0;             // sum of flow * cost, of the costs as given
};

/// @param supply_R     units that each row must ship, >= 0
/// @param demand_C     units that each column takes at most, >= 0; exactly, when both sums are equal
/// @param capacity_RC  row-major, units that a cell carries at most, >= 0
/// @param cost_RC      row-major, cost of one unit, of either sign. Magnitudes up to about 2^60 / (R + C)
/// @return a plan of least cost, always the same one for the same input
/// @throws ShapeError when sizes or values do not fit, or when the supply cannot be shipped
[[nodiscard]] TransportPlan min_cost_transport(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                                               std::span<const int64_t> capacity_RC, std::span<const int64_t> cost_RC);

/// The same for real costs, which must be finite. They are rounded to multiples of a power of two that is at most
/// max |cost| * (R + C) / 2^58, which for R + C <= 32 is finer than a double near max |cost|; the flow is exactly optimal for
/// the rounded costs.
[[nodiscard]] TransportPlan min_cost_transport(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                                               std::span<const int64_t> capacity_RC, std::span<const double> cost_RC);

}  // namespace switchyard
