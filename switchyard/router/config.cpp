#include <algorithm>
#include <array>

#include "switchyard/core/config.hpp"
#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {
namespace {

constexpr auto kNormalizations = std::to_array<Spelling<WeightNormalization>>(
    {{WeightNormalization::None, "none"}, {WeightNormalization::ChosenSum, "chosen_sum"}});

}  // namespace

void RouterConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  std::vector<std::string> names;
  for (const RouterEntry& entry : router_table()) names.emplace_back(entry.name);
  const std::string nearest = nearest_name(name, names);
  check(std::find(names.begin(), names.end(), name) != names.end(), "name", toml_value(name),
        join_text("one of ", comma_list(names), nearest.empty() ? "" : join_text(" (did you mean '", nearest, "'?)")));
  check(init_deviation >= 0.0 && init_deviation <= 1e3, "init_deviation", init_deviation, "a number from 0 to 1,000");
}

std::string to_string(const WeightNormalization& value) { return spelling_of(kNormalizations, value); }
void parse(std::string_view text, WeightNormalization& value) {
  value = from_spelling("weight normalization", kNormalizations, text);
}

}  // namespace switchyard
