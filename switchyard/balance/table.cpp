#include "switchyard/balance/method.hpp"
#include "switchyard/balance/step_balance.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

struct MethodEntry {
  BalancerEntry entry;
  StatisticMethod method;
};

const std::vector<MethodEntry>& method_table() {
  static const std::vector<MethodEntry> table = {
      {{"lbl", "load-balancing loss E sum_e f_e P_e, over any scope", "2101.03961 eq. 4; 2501.11873"},
       {.value = lbl_value, .slope = lbl_slope}},
      {{"none", "no balancing loss; counts are still taken", "own"}, {}},
  };
  return table;
}

}  // namespace

const std::vector<BalancerEntry>& balancer_table() {
  static const std::vector<BalancerEntry> table = [] {
    std::vector<BalancerEntry> entries;
    for (const MethodEntry& line : method_table()) entries.push_back(line.entry);
    return entries;
  }();
  return table;
}

const StatisticMethod& find_method(std::string_view name) {
  std::vector<std::string> known;
  for (const MethodEntry& line : method_table()) {
    if (line.entry.name == name) return line.method;
    known.emplace_back(line.entry.name);
  }
  throw ConfigError(unknown_name("balancing method", name, known));
}

}  // namespace switchyard
