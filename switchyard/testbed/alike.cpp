#include "switchyard/testbed/alike.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

enum class RestsOn { Text, Experts, MicroBatches };

struct MeasureKey {
  std::string_view key;
  RestsOn part;
};

constexpr std::array<MeasureKey, 7> kKeys = {{
    {"data.path", RestsOn::Text},
    {"data.domains", RestsOn::Text},
    {"data.sequence_length", RestsOn::Text},
    {"evaluation.sequences_per_domain", RestsOn::Text},
    {"model.num_experts", RestsOn::Experts},
    {"model.num_chosen", RestsOn::Experts},
    {"data.sequences_per_micro_batch", RestsOn::MicroBatches},
}};

bool rests_on(std::string_view metric, RestsOn part) {
  switch (part) {
    case RestsOn::Text: break;
    case RestsOn::Experts: return metric != "loss" && metric != "perplexity";
    case RestsOn::MicroBatches: return metric == "max_vio_micro_batch";
  }
  return true;
}

std::string_view what_does_not_compare(RestsOn part) {
  switch (part) {
    case RestsOn::Text: break;
    case RestsOn::Experts: return "of them only losses compare";
    case RestsOn::MicroBatches: return "their MaxVio of micro-batches does not compare";
  }
  return "their numbers do not compare, for they are measured on different text";
}

}  // namespace

std::string arms_text(const std::vector<std::string>& arms) {
  std::vector<std::string> names;
  for (const std::string& arm : arms) {
    if (std::find(names.begin(), names.end(), arm) == names.end()) names.push_back(arm);
  }
  if (names.size() == 1) return "arm " + names.front();
  const std::string last = names.back();
  names.pop_back();
  return join_text("arms ", comma_list(names), " and ", last);
}

void check_claims_compare(const TestbedConfig& config, const std::vector<PlannedRun>& runs) {
  const auto run_of = [&](const std::string& arm) {  // all seeds of an arm have one configuration
    return std::find_if(runs.begin(), runs.end(), [&](const PlannedRun& run) { return run.arm == arm; });
  };
  for (size_t index = 0; index < config.claims.size(); ++index) {
    const ClaimConfig& claim = config.claims[index];
    if (claim.against.empty()) continue;
    const std::map<std::string, std::string> one = flatten(run_of(claim.arm)->config);
    const std::map<std::string, std::string> other = flatten(run_of(claim.against)->config);
    for (const auto& [name, part] : kKeys) {
      const std::string key(name);
      SWITCHYARD_CHECK(!rests_on(claim.metric, part) || one.at(key) == other.at(key), ConfigError, "claims[", index, "]: ", key,
                       " is ", one.at(key), " for ", claim.arm, " and ", other.at(key), " for ", claim.against,
                       ", so the difference of their ", claim.metric, " says nothing; give both the same, or leave the claim out");
    }
  }
}

std::vector<std::string> unlike_notes(const std::vector<PlannedRun>& runs) {
  std::map<std::string, std::map<std::string, std::vector<std::string>>> arms_by_key;  // key -> value -> arms
  for (const PlannedRun& run : runs) {
    for (const auto& [key, value] : flatten(run.config)) arms_by_key[key][value].push_back(run.arm);
  }
  std::vector<std::string> notes;
  for (const auto& [key, part] : kKeys) {
    const auto& arms_by_value = arms_by_key[std::string(key)];
    if (arms_by_value.size() < 2) continue;
    const std::string values = joined(arms_by_value, "; ", [](const auto& entry) {
      return join_text(entry.first, " for ", arms_text(entry.second));
    });
    notes.push_back(join_text("Arms differ in ", key, " (", values, "): ", what_does_not_compare(part), "."));
  }
  return notes;
}

}  // namespace switchyard
