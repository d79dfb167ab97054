#include "switchyard/core/min_cost_flow.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <queue>
#include <string_view>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr int64_t kUnreached = std::numeric_limits<int64_t>::max();

// Primal-dual: each phase finds the shortest distances in the residual network (Dijkstra on reduced costs, which the
// potentials keep from being negative) and then ships all that fits along shortest paths (Dinic). Few phases are needed where
// augmenting one path at a time would need as many as there are units.
class Network {
 public:
  Network(size_t num_nodes, size_t source, size_t sink)
      : source_(source), sink_(sink), arcs_(num_nodes), potential_(num_nodes, 0) {}

  // Returns the position of the arc in its tail's list.
  size_t add_arc(size_t tail, size_t head, int64_t capacity, int64_t cost) {
    arcs_[tail].push_back({head, arcs_[head].size(), capacity, cost});
    arcs_[head].push_back({tail, arcs_[tail].size() - 1, 0, -cost});
    return arcs_[tail].size() - 1;
  }

  void set_potential(size_t node, int64_t potential) { potential_[node] = potential; }

  [[nodiscard]] int64_t ship_all() {
    int64_t shipped = 0;
    while (update_potentials()) {
      while (find_levels()) {
        next_arc_.assign(arcs_.size(), 0);
        while (const int64_t amount = ship(source_, kUnreached)) shipped += amount;
      }
    }
    return shipped;
  }

  // What was shipped is what the backward arc could return.
  [[nodiscard]] int64_t flow(size_t tail, size_t position) const {
    const Arc& arc = arcs_[tail][position];
    return arcs_[arc.head][arc.reverse].capacity;
  }

 private:
  struct Arc {
    size_t head;
    size_t reverse;    // position of the opposite arc in the list of `head`
    int64_t capacity;  // what is left
    int64_t cost;
  };

  [[nodiscard]] int64_t reduced_cost(size_t tail, const Arc& arc) const {
    return arc.cost + potential_[tail] - potential_[arc.head];
  }

  // False when the sink cannot be reached any more.
  bool update_potentials() {
    using Entry = std::pair<int64_t, size_t>;
    std::vector<int64_t> distance(arcs_.size(), kUnreached);
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    distance[source_] = 0;
    queue.emplace(0, source_);
    while (!queue.empty()) {
      const auto [reached, node] = queue.top();
      queue.pop();
      if (reached > distance[node]) continue;
      for (const Arc& arc : arcs_[node]) {
        if (arc.capacity == 0) continue;
        const int64_t candidate = reached + reduced_cost(node, arc);
        if (candidate >= distance[arc.head]) continue;
        distance[arc.head] = candidate;
        queue.emplace(candidate, arc.head);
      }
    }
    if (distance[sink_] == kUnreached) return false;
    // Capping at the sink's distance keeps reduced costs from being negative also where nothing was reached.
    for (size_t node = 0; node < arcs_.size(); ++node) potential_[node] += std::min(distance[node], distance[sink_]);
    return true;
  }

  bool find_levels() {
    level_.assign(arcs_.size(), kUnreached);
    std::queue<size_t> queue;
    level_[source_] = 0;
    queue.push(source_);
    while (!queue.empty()) {
      const size_t node = queue.front();
      queue.pop();
      for (const Arc& arc : arcs_[node]) {
        if (arc.capacity == 0 || level_[arc.head] != kUnreached || reduced_cost(node, arc) != 0) continue;
        level_[arc.head] = level_[node] + 1;
        queue.push(arc.head);
      }
    }
    return level_[sink_] != kUnreached;
  }

  // Ships up to `limit` from `node` to the sink along one path; as deep as that path is long, at most the number of nodes.
  int64_t ship(size_t node, int64_t limit) {
    if (node == sink_) return limit;
    for (size_t& position = next_arc_[node]; position < arcs_[node].size(); ++position) {
      Arc& arc = arcs_[node][position];
      if (arc.capacity == 0 || level_[arc.head] != level_[node] + 1 || reduced_cost(node, arc) != 0) continue;
      const int64_t amount = ship(arc.head, std::min(limit, arc.capacity));
      if (amount == 0) continue;
      arc.capacity -= amount;
      arcs_[arc.head][arc.reverse].capacity += amount;
      return amount;
    }
    return 0;
  }

  size_t source_;
  size_t sink_;
  std::vector<std::vector<Arc>> arcs_;  // by tail
  std::vector<int64_t> potential_;
  std::vector<int64_t> level_;
  std::vector<size_t> next_arc_;
};

int64_t checked_sum(std::span<const int64_t> values, std::string_view what) {
  constexpr int64_t kLargestSum = int64_t{1} << 61;
  int64_t sum = 0;
  for (const int64_t value : values) {
    SWITCHYARD_CHECK(value >= 0, ShapeError, "transport: ", what, " ", value, "; expected at least 0");
    SWITCHYARD_CHECK(value <= kLargestSum - sum, ShapeError, "transport: the sum of ", what, " exceeds 2^61");
    sum += value;
  }
  return sum;
}

// Path lengths and potentials stay below this times the largest cost.
int64_t largest_cost(size_t num_nodes) {
  return (int64_t{1} << 62) / static_cast<int64_t>(4 * std::bit_ceil(num_nodes));
}

void check_sizes(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                 std::span<const int64_t> capacity_RC, size_t num_costs) {
  const size_t num_cells = supply_R.size() * demand_C.size();
  SWITCHYARD_CHECK(capacity_RC.size() == num_cells && num_costs == num_cells, ShapeError, "transport: ",
                   capacity_RC.size(), " capacities and ", num_costs, " costs; expected ", supply_R.size(), " x ",
                   demand_C.size());
  for (const int64_t capacity : capacity_RC) {
    SWITCHYARD_CHECK(capacity >= 0, ShapeError, "transport: capacity ", capacity, "; expected at least 0");
  }
}

std::vector<int64_t> solve(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                           std::span<const int64_t> capacity_RC, std::span<const int64_t> cost_RC) {
  const size_t num_rows = supply_R.size();
  const size_t num_columns = demand_C.size();
  const size_t source = num_rows + num_columns;
  const size_t sink = source + 1;
  const int64_t total = checked_sum(supply_R, "supply");
  (void)checked_sum(demand_C, "demand");
  const int64_t largest = largest_cost(sink + 1);
  for (const int64_t cost : cost_RC) {
    SWITCHYARD_CHECK(cost >= -largest && cost <= largest, ShapeError, "transport: cost ", cost, " exceeds ", largest);
  }
  // Potentials that make every reduced cost at least 0 although costs may be negative.
  const int64_t lowest = cost_RC.empty() ? 0 : std::min<int64_t>(0, *std::min_element(cost_RC.begin(), cost_RC.end()));
  Network network(sink + 1, source, sink);
  network.set_potential(sink, lowest);
  for (size_t row = 0; row < num_rows; ++row) network.add_arc(source, row, supply_R[row], 0);
  for (size_t column = 0; column < num_columns; ++column) {
    network.set_potential(num_rows + column, lowest);
    network.add_arc(num_rows + column, sink, demand_C[column], 0);
  }
  std::vector<size_t> position_RC(cost_RC.size());
  for (size_t row = 0; row < num_rows; ++row) {
    for (size_t column = 0; column < num_columns; ++column) {
      const size_t cell = row * num_columns + column;
      const int64_t capacity = std::min({capacity_RC[cell], supply_R[row], demand_C[column]});
      position_RC[cell] = network.add_arc(row, num_rows + column, capacity, cost_RC[cell]);
    }
  }
  const int64_t shipped = network.ship_all();
  SWITCHYARD_CHECK(shipped == total, ShapeError, "transport: only ", shipped, " of ", total,
                   " units of supply fit into the demands and capacities");
  std::vector<int64_t> flow_RC(cost_RC.size());
  for (size_t cell = 0; cell < flow_RC.size(); ++cell) flow_RC[cell] = network.flow(cell / num_columns, position_RC[cell]);
  return flow_RC;
}

template <typename Cost>
double total_cost(const std::vector<int64_t>& flow_RC, std::span<const Cost> cost_RC) {
  double sum = 0.0;
  for (size_t cell = 0; cell < flow_RC.size(); ++cell) {
    sum += static_cast<double>(flow_RC[cell]) * static_cast<double>(cost_RC[cell]);
  }
  return sum;
}

}  // namespace

TransportPlan min_cost_transport(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                                 std::span<const int64_t> capacity_RC, std::span<const int64_t> cost_RC) {
  check_sizes(supply_R, demand_C, capacity_RC, cost_RC.size());
  std::vector<int64_t> flow_RC = solve(supply_R, demand_C, capacity_RC, cost_RC);
  const double cost = total_cost(flow_RC, cost_RC);
  return {std::move(flow_RC), cost};
}

TransportPlan min_cost_transport(std::span<const int64_t> supply_R, std::span<const int64_t> demand_C,
                                 std::span<const int64_t> capacity_RC, std::span<const double> cost_RC) {
  check_sizes(supply_R, demand_C, capacity_RC, cost_RC.size());
  double magnitude = 0.0;
  for (const double cost : cost_RC) {
    SWITCHYARD_CHECK(std::isfinite(cost), ShapeError, "transport: cost ", cost, " is not finite");
    magnitude = std::max(magnitude, std::abs(cost));
  }
  // Scaling by a power of two: costs that are whole multiples of the grid stay exact.
  const int exponent = magnitude == 0.0 ? 0 : std::ilogb(magnitude) + 1;
  const int bits = std::ilogb(static_cast<double>(largest_cost(supply_R.size() + demand_C.size() + 2)));
  std::vector<int64_t> grid_RC;
  grid_RC.reserve(cost_RC.size());
  for (const double cost : cost_RC) grid_RC.push_back(std::llround(std::ldexp(cost, bits - exponent)));
  std::vector<int64_t> flow_RC = solve(supply_R, demand_C, capacity_RC, grid_RC);
  const double cost = total_cost(flow_RC, cost_RC);
  return {std::move(flow_RC), cost};
}

}  // namespace switchyard
