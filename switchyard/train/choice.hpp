#pragma once
// Small helpers of the config structs of this folder.

#include <array>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {

/// The value whose name is `text`; names are in the order of the enum.
/// @throws ConfigError with the known names and the nearest one
template <typename Enum, size_t N>
[[nodiscard]] Enum parse_choice(std::string_view what, const std::array<std::string, N>& names, std::string_view text) {
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == text) return static_cast<Enum>(i);
  }
  throw ConfigError(unknown_name(what, text, names));
}

/// Checks of one section; `where` is what ConfigNode::where("") says: "run.toml" or "run.toml:12: optimizer".
class SectionCheck {
 public:
  explicit SectionCheck(std::string where) : where_(std::move(where)) {}

  /// @throws ConfigError "<place>.<key> is <given>; expected <expected>" unless the condition holds
  template <typename T>
  void operator()(bool holds, std::string_view key, const T& given, std::string_view expected) const {
    const std::string_view join = where_.empty() ? "" : where_.find(": ") == std::string::npos ? ": " : ".";
    SWITCHYARD_CHECK(holds, ConfigError, where_, join, key, " is ", as_given(given), "; expected ", expected);
  }

 private:
  /// All digits that were given: six would make 1 of .99999999.
  template <typename T>
  static std::string as_given(const T& value) {
    std::ostringstream text;
    text << std::setprecision(std::numeric_limits<double>::digits10) << value;
    return text.str();
  }
  std::string where_;
};

}  // namespace switchyard
