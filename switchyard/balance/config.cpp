#include "switchyard/balance/config.hpp"

#include <cmath>

#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

template <typename Enum>
Enum parse_either(std::string_view what, std::string_view text, std::string_view first, std::string_view second,
                  Enum first_value, Enum second_value) {
  if (text == first) return first_value;
  if (text == second) return second_value;
  const std::vector<std::string> known = {std::string(first), std::string(second)};
  throw ConfigError(unknown_name(what, text, known));
}

void check_weight(const std::string& where, std::string_view key, double weight) {
  SWITCHYARD_CHECK(std::isfinite(weight) && weight >= 0.0, ConfigError, where, key, " = ", weight,
                   "; expected a finite number, 0 or above");
}

}  // namespace

std::string to_string(const GroupWeighting& value) { return value == GroupWeighting::Mean ? "mean" : "tokens"; }
std::string to_string(const LayerReduction& value) { return value == LayerReduction::Sum ? "sum" : "mean"; }

void parse(std::string_view text, GroupWeighting& value) {
  value = parse_either("weighting", text, "mean", "tokens", GroupWeighting::Mean, GroupWeighting::Tokens);
}

void parse(std::string_view text, LayerReduction& value) {
  value = parse_either("layer reduction", text, "sum", "mean", LayerReduction::Sum, LayerReduction::Mean);
}

BalanceConfig without_loss(const BalanceConfig& config) {
  BalanceConfig silent = config;
  silent.coefficient = 0.0;
  silent.z_coefficient = 0.0;
  return silent;
}

void BalanceConfig::validate(const std::string& where) const {
  const std::string prefix = where.empty() ? "balance: " : where + ": ";
  try {
    static_cast<void>(find_method(method));
  } catch (const ConfigError& error) {
    throw ConfigError(prefix + error.what());
  }
  check_weight(prefix, "coefficient", coefficient);
  check_weight(prefix, "z_coefficient", z_coefficient);
  SWITCHYARD_CHECK(scope.kind != ScopeKind::Sequences || scope.num_sequences >= 1, ConfigError, prefix, "scope sequences(",
                   scope.num_sequences, "); expected at least 1 sequence");
  SWITCHYARD_CHECK(scope.kind != ScopeKind::Ema || (scope.decay > 0.0 && scope.decay < 1.0), ConfigError, prefix, "scope ema(",
                   scope.decay, "); expected a decay above 0 and below 1");
}

}  // namespace switchyard
