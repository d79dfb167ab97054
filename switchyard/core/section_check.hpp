#pragma once
// What validate() of a config section tells of a value that it does not take.

#include <iomanip>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>

#include "switchyard/core/error.hpp"

namespace switchyard {

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
