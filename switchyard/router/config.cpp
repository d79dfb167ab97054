#include <array>
#include <cmath>

#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {
namespace {

constexpr auto kNormalizations = std::to_array<Spelling<WeightNormalization>>(
    {{WeightNormalization::None, "none"}, {WeightNormalization::ChosenSum, "chosen_sum"}});

}  // namespace

void RouterConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(init_deviation >= 0.0 && std::isfinite(init_deviation), "init_deviation", init_deviation, "a finite number, 0 or more");
}

std::string to_string(const WeightNormalization& value) { return spelling_of(kNormalizations, value); }
void parse(std::string_view text, WeightNormalization& value) {
  value = from_spelling("weight normalization", kNormalizations, text);
}

}  // namespace switchyard
