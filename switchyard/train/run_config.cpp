#include "switchyard/train/run_config.hpp"

#include <algorithm>
#include <array>

#include "switchyard/balance/method.hpp"
#include "switchyard/core/section_check.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {
namespace {

/// A list of sections as a TOML value: [{method = "lbl", coefficient = 0.01}].
template <typename Section>
std::string inline_tables(const std::vector<Section>& sections) {
  std::string text;
  for (const Section& section : sections) {
    std::string fields;
    for (const FieldDoc& field : describe_config(section)) fields += join_text(fields.empty() ? "" : ", ", field.key, " = ", field.value);
    text += join_text(text.empty() ? "" : ", ", "{", fields, "}");
  }
  return "[" + text + "]";
}

/// Collects leaves as (path, TOML value).
class Flattener {
 public:
  Flattener(std::string prefix, std::map<std::string, std::string>& values)
      : prefix_(std::move(prefix)), values_(values) {}

  template <typename T>
  void operator()(std::string_view key, T& value, std::string_view) {
    const std::string path = prefix_ + std::string(key);
    if constexpr (ConfigSection<T>) {
      value.for_each_field(Flattener(path + ".", values_));
    } else if constexpr (detail::IsSectionVector<T>::value) {
      values_[path] = inline_tables(value);
    } else if constexpr (ParsedField<T>) {
      values_[path] = toml_value(std::string(to_string(value)));
    } else {
      values_[path] = toml_value(value);
    }
  }

 private:
  std::string prefix_;
  std::map<std::string, std::string>& values_;
};

constexpr int64_t kMostPermutations = 100'000;

/// A router that learns must hear of the text; where each weight is p / p it does not.
void check_router_learns(const ModelConfig& model, const SectionCheck& check) {
  const bool learns = find_router(model.router.name).balancing == TakesBalancing::Yes;
  check(!learns || model.num_chosen > 1 || model.router.normalize == WeightNormalization::None, "model.router.normalize",
        to_string(model.router.normalize),
        "none, because with model.num_chosen = 1 every weight would be 1, and no gradient of the text would reach the router");
}

/// Balancing that cannot do anything is refused (docs/decisions/0005).
void check_balancing_acts(const RunConfig& config, const SectionCheck& check) {
  const BalanceConfig& balance = config.balance;
  const bool chooses = config.model.num_chosen < config.model.num_experts;
  const std::string all_experts = config.model.num_experts == 1 ? "the only expert" : join_text("all ", config.model.num_experts, " experts");
  const std::vector<BalanceTerm> terms = all_terms(balance);
  for (size_t i = 0; i < terms.size(); ++i) {
    const BalanceTerm& term = terms[i];
    const std::string section = i == 0 ? "balance." : join_text("balance.terms[", i - 1, "].");
    check(term.method == "none" || term.from_step < config.steps, section + "from_step", term.from_step,
          join_text("a step below steps = ", config.steps, ": the loss '", term.method, "' over ", to_string(term.scope),
                    " would never act"));
    const StatisticMethod method = find_method(term.method);
    check(method.score != Score::Load || chooses, "model.num_chosen", config.model.num_chosen,
          join_text("fewer than num_experts = ", config.model.num_experts, ", because the method '", term.method,
                    "' asks how near an expert is to being chosen"));
    const bool counts_slots = method.reads == SlopeReads::Fractions && method.counted == Counted::Slots;
    const bool constant = method.value != nullptr && !chooses && (counts_slots || config.model.num_experts == 1);
    check(!constant || term.coefficient == 0.0, section + "coefficient", term.coefficient,
          join_text("0, because every token takes ", all_experts, ": the loss '", term.method, "' is constant"));
  }
  check(balance.selection.rule == SelectionRule::None || chooses, "balance.selection.rule", to_string(balance.selection.rule),
        join_text("none, because every token takes ", all_experts));
  check(balance.orthogonality_coefficient == 0.0 || config.model.num_chosen > 1, "balance.orthogonality_coefficient",
        balance.orthogonality_coefficient, "0, because model.num_chosen = 1 leaves no two experts of a token to compare");
}

}  // namespace

void RunDataConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(!path.empty(), "path", "empty", "the folder of a data set");
  // The system would take what stands before it, and the configuration would tell of another data set than was read.
  check(path.find('\0') == std::string::npos, "path", toml_value(path), "a path, which holds no NUL character");
  batcher.validate(where);
}

void CheckpointConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(every >= 0, "every", every, "0 (only at the end) or more");
  check(keep_last >= 1, "keep_last", keep_last, "1 or more");
}

void EvaluationConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(every >= 0, "every", every, "0 (only at the end) or more");
  check(sequences_per_domain >= 1, "sequences_per_domain", sequences_per_domain, "1 or more");
  check(permutations >= 1 && permutations <= kMostPermutations, "permutations", permutations,
        join_text("1 to ", kMostPermutations, " (200 for numbers that are reported): all are held in memory"));
}

void RunConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(!name.empty(), "name", "empty", "a name");
  check(printable(name) == name, "name", toml_value(name), "a name without control characters: it is a folder, and shown on screens");
  check(printable(arm) == arm, "arm", toml_value(arm), "a name without control characters: it is shown on screens");
  check(seed >= 0, "seed", seed, "0 or more");
  check(steps >= 1, "steps", steps, "1 or more");
  check_router_learns(model, check);
  check_balancing_acts(*this, check);
  const std::vector<std::string> acting = keys_acting_on_router(balance);
  const bool takes_it = find_router(model.router.name).balancing == TakesBalancing::Yes;
  check(acting.empty() || takes_it, comma_list(acting), "set",
        join_text("0 (selection.rule: \"none\"), because the router ", model.router.name, " takes no balancing"));
  check(optimizer.moments == MomentType::Full || execution.dtype != ComputeType::Float64, "optimizer.moments",
        to_string(optimizer.moments), "full, because execution.dtype is float64");
  check(balance.selection.rule == SelectionRule::None || execution.on_replay_mismatch == OnReplayMismatch::Error,
        "execution.on_replay_mismatch", to_string(execution.on_replay_mismatch),
        "error: recorded choices would stand for choices by other offsets");
}

std::map<std::string, std::string> flatten(const RunConfig& config) {
  std::map<std::string, std::string> values;
  RunConfig copy = config;
  copy.for_each_field(Flattener("", values));
  return values;
}

std::vector<ConfigDifference> compare(const RunConfig& before, const RunConfig& after) {
  std::vector<ConfigDifference> differences;
  const auto new_values = flatten(after);
  for (const auto& [key, value] : flatten(before)) {
    const std::string& other = new_values.at(key);
    if (value != other) differences.push_back({key, value, other});
  }
  return differences;
}

bool may_change_on_resume(const std::string& key) {
  constexpr std::array<std::string_view, 4> kKeys = {"name", "arm", "steps", "data.path"};
  constexpr std::array<std::string_view, 3> kSections = {"checkpoint.", "evaluation.", "execution."};
  if (key == "execution.dtype") return false;
  return std::find(kKeys.begin(), kKeys.end(), key) != kKeys.end() ||
         std::any_of(kSections.begin(), kSections.end(), [&](std::string_view section) { return key.starts_with(section); });
}

}  // namespace switchyard
