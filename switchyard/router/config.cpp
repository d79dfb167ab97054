#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {

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
