#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/router/router.hpp"
#include "switchyard/router/routers.hpp"

namespace switchyard {

const std::vector<RouterEntry>& router_table() {
  using enum TakesBalancing;
  static const std::vector<RouterEntry> table = {
      {"top_k", "softmax over experts, the K largest, weights optionally renormalised", "2101.03961; Qwen3-MoE", Yes,
       make_top_k_router},
      {"prescribed", "reference: experts prescribed by the domain label, exactly balanced", "own", No, make_prescribed_router},
      {"prescribed_shuffled", "null: the reference with a random domain for each document", "own", No,
       make_prescribed_shuffled_router},
      {"frozen_random", "null: top_k with random weights that are never trained", "2408.06793", No, make_frozen_random_router},
      {"random", "null: K distinct experts drawn uniformly for each token", "own", No, make_random_router},
  };
  return table;
}

const RouterEntry& find_router(std::string_view name) {
  std::vector<std::string> known;
  for (const RouterEntry& entry : router_table()) {
    if (entry.name == name) return entry;
    known.emplace_back(entry.name);
  }
  throw ConfigError(unknown_name("router", name, known));
}

}  // namespace switchyard
