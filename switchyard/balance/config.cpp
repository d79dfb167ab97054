#include "switchyard/balance/config.hpp"

#include <array>
#include <cmath>

#include "switchyard/balance/groups.hpp"
#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kWeightings =
    std::to_array<Spelling<GroupWeighting>>({{GroupWeighting::Mean, "mean"}, {GroupWeighting::Tokens, "tokens"}});
constexpr auto kReductions =
    std::to_array<Spelling<LayerReduction>>({{LayerReduction::Sum, "sum"}, {LayerReduction::Mean, "mean"}});
constexpr auto kRules = std::to_array<Spelling<SelectionRule>>({{SelectionRule::None, "none"},
                                                                {SelectionRule::Bias, "bias"},
                                                                {SelectionRule::BiasCentered, "bias_centered"},
                                                                {SelectionRule::Quantile, "quantile"},
                                                                {SelectionRule::MeanQuantile, "mean_quantile"}});

void check_weight(const std::string& where, std::string_view key, double weight) {
  constexpr double kMost = 1e20;  // well within what fp32 knows
  SWITCHYARD_CHECK(weight >= 0.0 && weight <= kMost, ConfigError, where, key, " = ", weight, "; expected a number from 0 to 1e20");
}

}  // namespace

std::string to_string(const GroupWeighting& value) { return spelling_of(kWeightings, value); }
void parse(std::string_view text, GroupWeighting& value) { value = from_spelling("weighting", kWeightings, text); }
std::string to_string(const LayerReduction& value) { return spelling_of(kReductions, value); }
void parse(std::string_view text, LayerReduction& value) { value = from_spelling("layer reduction", kReductions, text); }
std::string to_string(const SelectionRule& value) { return spelling_of(kRules, value); }
void parse(std::string_view text, SelectionRule& value) { value = from_spelling("selection rule", kRules, text); }

std::vector<BalanceTerm> all_terms(const BalanceConfig& config) {
  std::vector<BalanceTerm> terms = {{.method = config.method,
                                     .scope = config.scope,
                                     .coefficient = config.coefficient,
                                     .from_step = config.from_step,
                                     .to_step = config.to_step}};
  terms.insert(terms.end(), config.terms.begin(), config.terms.end());
  return terms;
}

std::vector<BalanceTerm> active_terms(const BalanceConfig& config, int64_t step) {
  std::vector<BalanceTerm> terms = all_terms(config);
  std::erase_if(terms, [step](const BalanceTerm& term) { return term.method == "none" || !term.active(step); });
  return terms;
}

double ema_decay(const BalanceConfig& config) {
  for (const BalanceTerm& term : all_terms(config)) {
    if (term.scope.kind == ScopeKind::Ema && term.method != "none") return term.scope.decay;
  }
  return 0.0;
}

double per_layer(LayerReduction layers, double coefficient, int64_t num_layers) {
  return layers == LayerReduction::Mean ? coefficient / static_cast<double>(num_layers) : coefficient;
}

std::vector<std::string> keys_acting_on_router(const BalanceConfig& config) {
  std::vector<std::string> keys;
  const auto add_if = [&keys](bool acts, std::string key) {
    if (acts) keys.push_back("balance." + std::move(key));
  };
  add_if(config.method != "none" && config.coefficient != 0.0, "coefficient");
  for (size_t i = 0; i < config.terms.size(); ++i) {
    add_if(config.terms[i].method != "none" && config.terms[i].coefficient != 0.0, join_text("terms[", i, "].coefficient"));
  }
  add_if(config.z_coefficient != 0.0, "z_coefficient");
  add_if(config.simbal_coefficient != 0.0, "simbal_coefficient");
  add_if(config.selection.rule != SelectionRule::None, "selection.rule");
  return keys;
}

BalanceConfig without_loss(const BalanceConfig& config) {
  BalanceConfig silent = config;
  silent.coefficient = 0.0;
  silent.z_coefficient = 0.0;
  silent.simbal_coefficient = 0.0;
  silent.orthogonality_coefficient = 0.0;
  silent.selection.rule = SelectionRule::None;
  silent.terms.clear();
  return silent;
}

void BalanceTerm::validate(const std::string& where) const {
  const std::string prefix = where.empty() ? "balance: " : where + ": ";
  StatisticMethod found;
  try {
    found = find_method(method);
  } catch (const ConfigError& error) {
    throw ConfigError(prefix + error.what());
  }
  check_weight(prefix, "coefficient", coefficient);
  SWITCHYARD_CHECK(scope.kind != ScopeKind::Sequences || scope.num_sequences >= 1, ConfigError, prefix, "scope sequences(",
                   scope.num_sequences, "); expected at least 1 sequence");
  SWITCHYARD_CHECK(scope.kind != ScopeKind::Ema || (scope.decay > 0.0 && scope.decay < 1.0), ConfigError, prefix, "scope ema(",
                   scope.decay, "); expected a decay above 0 and below 1");
  SWITCHYARD_CHECK(from_step >= 0 && (to_step == 0 || to_step > from_step), ConfigError, prefix, "steps ", from_step, " to ",
                   to_step, "; expected 0 <= from_step < to_step, or to_step = 0 for no end");
  const bool earlier = fraction_source(scope.kind) == FractionSource::EarlierSteps;
  const bool own_tokens = found.reads != SlopeReads::Fractions;
  SWITCHYARD_CHECK(!own_tokens || (!earlier && scope.kind != ScopeKind::Prefix), ConfigError, prefix, "method '", method,
                   "' takes its statistics from the tokens that it moves, so the scope ", to_string(scope),
                   " does not exist for it; use sequence, sequences(n), micro_batch, ranks or optimizer_batch");
  SWITCHYARD_CHECK(found.counted == Counted::Slots || !earlier, ConfigError, prefix, "method '", method,
                   "' counts first choices, which are not kept from step to step; use a scope of this step instead of ",
                   to_string(scope));
}

void SelectionConfig::validate(const std::string& where) const {
  const std::string prefix = where.empty() ? "balance.selection: " : where + ": ";
  check_weight(prefix, "rate", rate);
  SWITCHYARD_CHECK(decay >= 0.0 && decay < 1.0, ConfigError, prefix, "decay = ", decay,
                   "; expected a number in [0, 1)");
  // What a rule does not read would be believed to act.
  const SelectionConfig untouched;
  SWITCHYARD_CHECK(rule != SelectionRule::None || (rate == untouched.rate && decay == untouched.decay), ConfigError, prefix,
                   "rate = ", rate, " and decay = ", decay, " without a rule, so they would do nothing; expected a rule (bias, ",
                   "bias_centered, quantile or mean_quantile), or neither of them");
  const bool by_bias = rule == SelectionRule::Bias || rule == SelectionRule::BiasCentered;
  const bool by_quantile = rule == SelectionRule::Quantile || rule == SelectionRule::MeanQuantile;
  SWITCHYARD_CHECK(!by_bias || rate > 0.0, ConfigError, prefix, "rate = 0 with rule ", to_string(rule),
                   ", which would then do nothing; expected a number above 0, or rule = \"none\"");
  SWITCHYARD_CHECK(!by_bias || rate <= 1.0, ConfigError, prefix, "rate = ", rate, ", added to probabilities, so that ",
                   "from the second step on it alone would choose; expected a number above 0 and up to 1");
  SWITCHYARD_CHECK(!by_bias || decay == 0.0, ConfigError, prefix, "decay = ", decay, ", which the rule ", to_string(rule),
                   " does not have; leave it out (rate says how far a step moves)");
  SWITCHYARD_CHECK(!by_quantile || rate == untouched.rate, ConfigError, prefix, "rate = ", rate, ", which the rule ",
                   to_string(rule), " does not have; leave it out (decay says how much of the old threshold is kept)");
}

void BalanceConfig::validate(const std::string& where) const {
  const std::string prefix = where.empty() ? "balance: " : where + ": ";
  double decay = 0.0;
  for (const BalanceTerm& term : all_terms(*this)) {
    term.validate(where);
    if (term.scope.kind != ScopeKind::Ema || term.method == "none") continue;
    SWITCHYARD_CHECK(decay == 0.0 || decay == term.scope.decay, ConfigError, prefix, "scopes ema(", decay, ") and ema(",
                     term.scope.decay, "); one exponential mean is kept, so the decays must be equal");
    decay = term.scope.decay;
  }
  check_weight(prefix, "z_coefficient", z_coefficient);
  check_weight(prefix, "simbal_coefficient", simbal_coefficient);
  check_weight(prefix, "orthogonality_coefficient", orthogonality_coefficient);
  selection.validate(where.empty() ? where : where + ".selection");
}

}  // namespace switchyard
