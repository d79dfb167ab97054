#pragma once
// What balancing is asked for: methods, scopes, weights. The section `balance` of a configuration.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/core/scope.hpp"

namespace switchyard {

enum class GroupWeighting { Mean, Tokens };  // how group losses are averaged over the step: 1/G, or T_g / T_step
enum class LayerReduction { Sum, Mean };     // lambda applies per layer and layers are summed, or averaged

/// How the offsets that are added to scores for choosing follow from a step's load, once per optimizer step.
enum class SelectionRule {
  None,
  Bias,          // b += rate * sign(mean load - load), on probabilities (arXiv 2408.15664, Algorithm 1)
  BiasCentered,  // the same, less the mean of the change over experts
  Quantile,      // minus the threshold that gives each expert T K / E tokens, on logits, from one histogram of the whole step
  MeanQuantile,  // the same thresholds per micro-batch, averaged: for comparison only, it does not balance the step
};

[[nodiscard]] std::string to_string(const GroupWeighting& value);
[[nodiscard]] std::string to_string(const LayerReduction& value);
[[nodiscard]] std::string to_string(const SelectionRule& value);
void parse(std::string_view text, GroupWeighting& value);
void parse(std::string_view text, LayerReduction& value);
void parse(std::string_view text, SelectionRule& value);

/// One balancing loss: a method over a scope, in the steps [from_step, to_step).
struct BalanceTerm {
  std::string method = "lbl";
  Scope scope{};
  double coefficient = 0.01;
  int64_t from_step = 0;
  int64_t to_step = 0;  // 0: to the end

  [[nodiscard]] bool active(int64_t step) const { return step >= from_step && (to_step == 0 || step < to_step); }

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("method", method, "balancing method, one of `switchyard list balancers`");
    visit("scope", scope, "tokens over which statistics are taken, one of `switchyard list scopes`");
    visit("coefficient", coefficient, "lambda, weight of the balancing loss");
    visit("from_step", from_step, "first step with this loss, counted from 0");
    visit("to_step", to_step, "first step without it again, counted from 0; 0: to the end");
  }
  void validate(const std::string& where) const;

  bool operator==(const BalanceTerm&) const = default;
};

/// State that corrects choices and adds no loss.
struct SelectionConfig {
  SelectionRule rule = SelectionRule::None;
  double rate = 1e-3;   // of bias
  double decay = 0.0;   // of quantile: share of the old threshold that is kept

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("rule", rule, "none, bias, bias_centered, quantile or mean_quantile");
    visit("rate", rate, "change of a bias in a step");
    visit("decay", decay, "share of the old threshold that quantile keeps");
  }
  void validate(const std::string& where) const;

  bool operator==(const SelectionConfig&) const = default;
};

struct BalanceConfig {
  std::string method = "lbl";  // this, scope, coefficient and steps are the first term
  Scope scope{};
  double coefficient = 0.01;  // lambda
  int64_t from_step = 0;
  int64_t to_step = 0;
  double z_coefficient = 0.0;              // z-loss beside it
  double simbal_coefficient = 0.0;         // of the router's weights
  double orthogonality_coefficient = 0.0;  // of the chosen experts' outputs
  GroupWeighting weighting = GroupWeighting::Tokens;
  LayerReduction layers = LayerReduction::Mean;
  SelectionConfig selection{};
  std::vector<BalanceTerm> terms{};  // further losses, added to the first

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("method", method, "balancing method, one of `switchyard list balancers`");
    visit("scope", scope, "tokens over which experts are counted, one of `switchyard list scopes`");
    visit("coefficient", coefficient, "lambda, weight of the balancing loss");
    visit("from_step", from_step, "first step with this loss");
    visit("to_step", to_step, "first step without it again; 0: to the end");
    visit("z_coefficient", z_coefficient, "weight of the router z-loss");
    visit("simbal_coefficient", simbal_coefficient, "weight of SimBal, on the router's weights");
    visit("orthogonality_coefficient", orthogonality_coefficient, "weight of the orthogonality of a token's expert outputs");
    visit("weighting", weighting, "average over balance groups: tokens or mean");
    visit("layers", layers, "losses of the layers are averaged (mean) or added (sum)");
    visit("selection", selection, "offsets that correct choices without a loss");
    visit("terms", terms, "further balancing losses beside the first");
  }
  /// Checks each part, and that two exponential means do not differ in decay (one is kept).
  void validate(const std::string& where) const;

  bool operator==(const BalanceConfig&) const = default;
};

/// The losses of a step: the first term, then the further ones, without those of method `none` or not active.
[[nodiscard]] std::vector<BalanceTerm> active_terms(const BalanceConfig& config, int64_t step);

/// All terms, active or not, the first one first.
[[nodiscard]] std::vector<BalanceTerm> all_terms(const BalanceConfig& config);

/// The weight of a loss in each of `num_layers` MoE layers: its coefficient, divided by them where they are averaged.
[[nodiscard]] double per_layer(LayerReduction layers, double coefficient, int64_t num_layers);

/// Decay of the exponential mean that a term asks for; 0 if none does.
[[nodiscard]] double ema_decay(const BalanceConfig& config);

/// What acts on the router's choices: the keys of losses with a weight above 0, and of a selection rule, such as
/// "balance.z_coefficient".
[[nodiscard]] std::vector<std::string> keys_acting_on_router(const BalanceConfig& config);

/// The same without any gradient or offset, for routers that take no balancing (RouterEntry::balancing). What can be measured
/// is still measured.
[[nodiscard]] BalanceConfig without_loss(const BalanceConfig& config);

}  // namespace switchyard
