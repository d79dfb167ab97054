#include "switchyard/testbed/number_text.hpp"

#include <array>
#include <charconv>
#include <cmath>

#include "switchyard/core/text.hpp"

namespace switchyard {

std::string number_text(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  std::array<char, 512> buffer{};  // enough for the largest double in fixed point
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, digits);
  return without_sign_of_zero(std::string(buffer.data(), end.ptr));
}

}  // namespace switchyard
