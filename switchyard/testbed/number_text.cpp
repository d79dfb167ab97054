#include "switchyard/testbed/number_text.hpp"

#include <array>
#include <charconv>
#include <cmath>

namespace switchyard {

std::string number_text(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  std::array<char, 512> buffer{};  // enough for the largest double in fixed point
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::fixed, digits);
  std::string text(buffer.data(), end.ptr);
  if (text.front() == '-' && text.find_first_of("123456789") == std::string::npos) text.erase(0, 1);
  return text;
}

}  // namespace switchyard
