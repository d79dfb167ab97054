#pragma once
// What balancing is asked for: method, scope, weight. The section `balance` of a configuration.

#include <cstdint>
#include <string>
#include <string_view>

#include "switchyard/core/scope.hpp"

namespace switchyard {

enum class GroupWeighting { Mean, Tokens };  // how group losses are averaged over the step: 1/G, or T_g / T_step
enum class LayerReduction { Sum, Mean };     // lambda applies per layer and layers are summed, or averaged

[[nodiscard]] std::string to_string(const GroupWeighting& value);
[[nodiscard]] std::string to_string(const LayerReduction& value);
void parse(std::string_view text, GroupWeighting& value);
void parse(std::string_view text, LayerReduction& value);

struct BalanceConfig {
  std::string method = "lbl";  // `switchyard list balancers`; "none" turns balancing off
  Scope scope{};
  double coefficient = 0.01;   // lambda
  double z_coefficient = 0.0;  // z-loss beside it
  GroupWeighting weighting = GroupWeighting::Tokens;
  LayerReduction layers = LayerReduction::Mean;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("method", method, "balancing method, one of `switchyard list balancers`");
    visit("scope", scope, "tokens over which experts are counted, one of `switchyard list scopes`");
    visit("coefficient", coefficient, "lambda, weight of the balancing loss");
    visit("z_coefficient", z_coefficient, "weight of the router z-loss");
    visit("weighting", weighting, "average over balance groups: tokens or mean");
    visit("layers", layers, "losses of the layers are averaged (mean) or added (sum)");
  }
  void validate(const std::string& where) const;

  bool operator==(const BalanceConfig&) const = default;
};

/// The same without any gradient, for routers that take no balancing (RouterEntry::balancing): both weights 0. What can be
/// measured is still measured.
[[nodiscard]] BalanceConfig without_loss(const BalanceConfig& config);

}  // namespace switchyard
