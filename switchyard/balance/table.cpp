#include "switchyard/balance/method.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

struct MethodEntry {
  BalancerEntry entry;
  StatisticMethod method;
};

const std::vector<MethodEntry>& method_table() {
  static const std::vector<MethodEntry> table = {
      {{"lbl", "load-balancing loss E sum_e f_e P_e, over any scope", "2101.03961 eq. 4; 2501.11873"},
       {.value = lbl_value, .slope = lbl_slope}},
      {{"gshard", "GShard's form: first choices, 1/E sum_e f_e P_e", "2006.16668 Algorithm 1"},
       {.value = gshard_value, .slope = gshard_slope, .counted = Counted::FirstChoices}},
      {{"importance_cv2", "CV^2 over experts of the summed router probabilities", "1701.06538 eq. 6-7"},
       {.value = variation_value, .slope = variation_slope, .reads = SlopeReads::Means}},
      {{"load_cv2", "CV^2 over experts of the smooth load estimate", "1701.06538 eq. 8-11"},
       {.value = variation_value, .slope = variation_slope, .reads = SlopeReads::Means, .score = Score::Load}},
      {{"variance", "minus the variance over tokens of the router probabilities", "2505.22323"},
       {.value = negative_variance_value,
        .slope = negative_variance_slope,
        .reads = SlopeReads::Means,
        .curvature = -1.0}},
      {{"expert_divergence", "pushes the domains' mean router probabilities apart; needs labels", "2603.00054"},
       {.value = divergence_value, .slope = divergence_slope, .reads = SlopeReads::DomainMeans}},
      {{"none", "no balancing loss; counts are still taken", "own"}, {}},
  };
  return table;
}

}  // namespace

const std::vector<BalancerEntry>& balancer_table() {
  static const std::vector<BalancerEntry> table = [] {
    std::vector<BalancerEntry> entries;
    for (const MethodEntry& line : method_table()) entries.push_back(line.entry);
    using enum BalancerKind;
    const std::vector<BalancerEntry> settings = {
        {"z_coefficient", "setting: z-loss, mean squared logsumexp of the logits", "2202.08906 eq. 5", Setting},
        {"simbal_coefficient", "setting: SimBal, router rows near orthonormal; no tokens", "2506.14038", Setting},
        {"orthogonality_coefficient", "setting: a token's expert outputs orthogonal", "2505.22323", Setting},
        {"selection.rule = bias", "setting: loss-free bias on probabilities; bias_centered beside it", "2408.15664", Setting},
        {"selection.rule = quantile", "setting: thresholds from one histogram of the step; mean_quantile to compare",
         "own; kexue.fm 11619", Setting}};
    entries.insert(entries.end(), settings.begin(), settings.end());
    return entries;
  }();
  return table;
}

const StatisticMethod& find_method(std::string_view name) {
  std::vector<std::string> known;
  for (const MethodEntry& line : method_table()) {
    if (line.entry.name == name) return line.method;
    known.emplace_back(line.entry.name);
  }
  throw ConfigError(unknown_name("balancing method", name, known));
}

}  // namespace switchyard
