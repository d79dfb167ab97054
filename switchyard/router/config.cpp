#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {

void RouterConfig::validate(const std::string& where) const {
  SWITCHYARD_CHECK(init_deviation >= 0.0 && std::isfinite(init_deviation), ConfigError, where, ": init_deviation is ", init_deviation,
                   "; expected a finite number, 0 or more");
}

std::string to_string(const WeightNormalization& value) { return value == WeightNormalization::None ? "none" : "chosen_sum"; }

void parse(std::string_view text, WeightNormalization& value) {
  if (text == "none") {
    value = WeightNormalization::None;
  } else if (text == "chosen_sum") {
    value = WeightNormalization::ChosenSum;
  } else {
    const std::vector<std::string> known = {"none", "chosen_sum"};
    throw ConfigError(unknown_name("weight normalization", text, known));
  }
}

}  // namespace switchyard
