#include "switchyard/balance/step_facts.hpp"

#include "switchyard/core/config.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

constexpr const char* kBegunWith = "begun_with";

// Equal for two that are asked for the same losses.
int64_t fingerprint(const BalanceConfig& config) { return static_cast<int64_t>(hash_text(to_toml(config))); }

// 0 for one that is not there.
int64_t fingerprint(const at::Tensor& kept) {
  if (!kept.defined()) return 0;
  const at::Tensor host = kept.to(at::kCPU).contiguous();
  return static_cast<int64_t>(hash_text({static_cast<const char*>(host.const_data_ptr()), host.nbytes()}));
}

int64_t fingerprint(const std::vector<int64_t>& numbers) {
  return static_cast<int64_t>(hash_text({reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(int64_t)}));
}

}  // namespace

// Ranks of which one lost its history would train towards different losses, without a word. What no loss reads may differ.
std::vector<AgreedFact> facts_of(const BalanceConfig& config, const BalanceShape& shape, const BalanceState& state) {
  constexpr size_t kMostTensors = 3;
  std::vector<AgreedFact> facts = {{"experts", shape.num_experts},
                                   {"MoE layers", shape.num_layers},
                                   {"experts chosen per token", shape.num_chosen},
                                   {"(hash) as balance settings", fingerprint(config)}};
  const size_t num_facts = facts.size() + kMostTensors;
  for (const NamedState& read : state_read_by(config, state)) {
    facts.push_back({join_text("(hash, 0 is none) as ", read.name, " of the balance state"), fingerprint(read.kept_LE)});
  }
  facts.resize(num_facts);
  return facts;
}

std::vector<AgreedFact> facts_of(const StepPlan& plan) {
  return {{"steps done", plan.step},
          {"forwards", plan.num_forwards()},
          {"micro-batches", plan.num_micro_batches},
          {"(0 sum, 1 mean, 2 by tokens) as contract over micro-batches", static_cast<int64_t>(plan.contract.micro_batches)},
          {"(0 sum, 1 mean, 2 by tokens) as contract over ranks", static_cast<int64_t>(plan.contract.ranks)}};
}

std::vector<AgreedFact> facts_of(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan,
                                 const BalanceState& state, const RankPlace& place) {
  std::vector<AgreedFact> facts = facts_of(config, shape, state);
  const std::vector<AgreedFact> of_plan = facts_of(plan);
  facts.insert(facts.end(), of_plan.begin(), of_plan.end());
  facts.insert(facts.end(), {{"segments", plan.num_segments()},
                             {"(hash) as segments of each forward", fingerprint(plan.forward_begin)},
                             {"(hash) as micro-batches of the segments", fingerprint(plan.segment_micro_batch)},
                             {"(hash) as ranks of the segments", fingerprint(plan.segment_rank)},
                             {"(hash) as domains of the segments", fingerprint(plan.segment_domain)},
                             {"MoE layers in all stages", shape.layers_of_model()},
                             {"ranks", place.ranks},
                             {"as data rank", place.data_rank},
                             {"as replica", place.replica}});
  return facts;
}

void put_facts(StepProgress& progress, const std::vector<AgreedFact>& facts) {
  std::vector<int64_t> values;
  for (const AgreedFact& fact : facts) values.push_back(fact.value);
  put(progress, kBegunWith, values);
}

void check_facts(const StepProgress& progress, const std::vector<AgreedFact>& facts) {
  std::vector<int64_t> values(facts.size());
  take(progress, kBegunWith, values);
  for (size_t i = 0; i < facts.size(); ++i) {
    SWITCHYARD_CHECK(values[i] == facts[i].value, ShapeError, "saved progress of a step is of one with ", values[i], " ",
                     facts[i].name, ", this one has ", facts[i].value,
                     "; resume with the config, the shape, the plan, the state and on the rank that the step began with");
  }
}

}  // namespace switchyard
