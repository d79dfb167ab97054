#include "mutants.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "switchyard/conform/textbook.hpp"

namespace switchyard::conform {
namespace {

// --- The scale of the gradient: B1 to B7.

struct OverRanks : Textbook {
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    return Textbook::contract_factor(step, m, rank) / static_cast<double>(step.num_ranks);
  }
};

struct AlwaysTokenWeights : Textbook {
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    BalanceCase other = step;
    other.weighting = GroupWeighting::Tokens;
    return Textbook::groups(other);
  }
};

struct OverAccumulationSteps : Textbook {  // counts of m micro-batches over m, over the tokens of the current one
  std::vector<double> fractions_E(const View& view) const override {
    const std::vector<int64_t> sums_E = counts_E(view.step, view.layer, view.device, view.group.counted);
    const int64_t steps = view.step.token(view.group.averaged.front()).micro_batch + 1;
    std::vector<double> fractions;
    for (const int64_t count : sums_E) {
      fractions.push_back(static_cast<double>(count) / static_cast<double>(steps * view.step.num_chosen) /
                          averaged_tokens(view));
    }
    return fractions;
  }
};

struct DeafToTokenMode : Textbook {
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    const bool by_tokens = step.contract.micro_batches == Averaging::ByTokens;
    return by_tokens ? static_cast<double>(step.num_micro_batches * step.num_ranks) : Textbook::contract_factor(step, m, rank);
  }
};

struct TimesMicroBatches : Textbook {
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    return Textbook::contract_factor(step, m, rank) * static_cast<double>(step.num_micro_batches);
  }
};

struct NoGradient : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    outcome.gradient_LTE.assign(outcome.gradient_LTE.size(), 0.0);
    return outcome;
  }
};

struct CoefficientUnused : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    BalanceCase other = step;
    other.coefficient = 1.0;
    return Textbook::run_step(other, memory);
  }
};

struct TimesRanks : Textbook {
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    return Textbook::contract_factor(step, m, rank) * static_cast<double>(step.num_ranks);
  }
};

struct AddedTwice : Textbook {
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    return 2.0 * Textbook::contract_factor(step, m, rank);
  }
};

struct CountsEachRun : Textbook {
  int64_t times_counted(const BalanceCase& step, int64_t layer) const override { return step.runs(layer); }
};

// --- Tokens, choices, values: B8 to B16.

struct CountsLargestScores : Textbook {
  std::vector<int64_t> requested(const BalanceCase& step, int64_t layer, int64_t token) const override {
    BalanceCase other = step;
    other.choices_LTK.clear();
    return chosen_K(other, layer, token);
  }
};

struct CountsPadding : Textbook {
  bool counts(const CaseToken&) const override { return true; }
};

struct NotANumberOfNothing : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    if (step.num_valid() == 0) outcome.weighted_loss = std::numeric_limits<double>::quiet_NaN();
    return outcome;
  }
};

struct RowIsSequence : Textbook {
  int64_t sequence_of(const CaseToken& token) const override { return token.row; }
};

struct MeanLength : Textbook {
  double averaged_tokens(const View& view) const override {
    return static_cast<double>(view.step.num_valid()) / static_cast<double>(groups(view.step).size());
  }
};

struct CountsKeptOnly : Textbook {
  std::vector<int64_t> requested(const BalanceCase& step, int64_t layer, int64_t token) const override {
    const std::vector<int64_t> all = chosen_K(step, layer, token);
    std::vector<int64_t> kept;
    for (size_t k = 0; k < all.size(); ++k) {
      if (step.dropped_LTK.empty() || !step.dropped_LTK[step.row(layer, token) * all.size() + k]) kept.push_back(all[k]);
    }
    return kept;
  }
};

struct NoDivisionByK : Textbook {
  std::vector<double> fractions_E(const View& view) const override {
    std::vector<double> fractions = Textbook::fractions_E(view);
    for (double& fraction : fractions) fraction *= static_cast<double>(view.step.num_chosen);
    return fractions;
  }
};

struct FirstChoiceOnly : Textbook {
  std::vector<int64_t> requested(const BalanceCase& step, int64_t layer, int64_t token) const override {
    return {chosen_K(step, layer, token).front()};
  }
};

struct LayersPooled : Textbook {
  double lbl_value(const BalanceCase& step, int64_t, const Memory& memory) const override {
    const TokenGroup group = groups(step).front();
    std::vector<double> pooled_f(static_cast<size_t>(step.num_experts), 0.0);
    std::vector<double> pooled_p = pooled_f;
    for (int64_t layer = 0; layer < step.num_layers; ++layer) {
      const View view{step, group, layer, 0, memory};
      const std::vector<double> fractions = fractions_E(view);
      const std::vector<double> means = mean_probs_E(view);
      for (size_t expert = 0; expert < pooled_f.size(); ++expert) {
        pooled_f[expert] += fractions[expert] / static_cast<double>(step.num_layers);
        pooled_p[expert] += means[expert] / static_cast<double>(step.num_layers);
      }
    }
    return static_cast<double>(step.num_experts) * std::inner_product(pooled_f.begin(), pooled_f.end(), pooled_p.begin(), 0.0);
  }
};

struct SigmoidWithEps : Textbook {
  std::vector<double> probabilities_E(std::span<const double> logits_E) const override {
    std::vector<double> scores_E;
    for (const double logit : logits_E) scores_E.push_back(1.0 / (1.0 + std::exp(-logit)));
    const double sum = std::accumulate(scores_E.begin(), scores_E.end(), 1e-20);
    for (double& score : scores_E) score /= sum;
    return scores_E;
  }
};

struct NeverBelowOne : Textbook {
  double lbl_value(const BalanceCase& step, int64_t layer, const Memory& memory) const override {
    return std::max(1.0, Textbook::lbl_value(step, layer, memory));
  }
};

// --- Ranks and layouts: B17 to B20.

struct CountsStayLocal : Textbook {
  std::vector<int64_t> adds_up_with(const DeviceGrid&, int64_t device) const override { return {device}; }
};

struct WorldGroup : Textbook {
  std::vector<int64_t> adds_up_with(const DeviceGrid& grid, int64_t) const override {
    std::vector<int64_t> all(static_cast<size_t>(num_devices(grid)));
    std::iota(all.begin(), all.end(), int64_t{0});
    return all;
  }
};

struct GroupWithoutContext : Textbook {
  std::vector<int64_t> adds_up_with(const DeviceGrid& grid, int64_t device) const override {
    std::vector<int64_t> members = token_group(grid, device);
    std::erase_if(members, [&](int64_t member) { return place_of(grid, member).context != place_of(grid, device).context; });
    return members;
  }
};

struct FrozenDenominator : Textbook {
  std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    std::vector<Outcome> outcomes = Textbook::run_steps(steps, saved);
    for (size_t i = 1; i < outcomes.size(); ++i) {
      const double scale = static_cast<double>(steps[i].num_valid()) / static_cast<double>(steps[0].num_valid());
      for (double& entry : outcomes[i].gradient_LTE) entry *= scale;
    }
    return outcomes;
  }
};

// --- State, evaluation, metrics, integers: B21 to B28.

struct BufferNotEmptied : Textbook {
  std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    std::vector<Outcome> outcomes = Textbook::run_steps(steps, saved);
    for (size_t i = 1; i < outcomes.size(); ++i) {
      for (size_t j = 0; j < outcomes[i].step_counts_LE.size(); ++j) {
        outcomes[i].step_counts_LE[j] += outcomes[i - 1].step_counts_LE[j];
      }
    }
    return outcomes;
  }
};

struct SavedInBf16 : Textbook {
  StateBytes save(const Memory& memory) const override {
    Memory rounded = memory;
    for (double& fraction : rounded.fractions_LE) {
      auto single = static_cast<float>(fraction);
      uint32_t bits = 0;
      std::memcpy(&bits, &single, sizeof(bits));
      bits &= 0xFFFF0000U;
      std::memcpy(&single, &bits, sizeof(bits));
      fraction = static_cast<double>(single);
    }
    return Textbook::save(rounded);
  }
};

struct NotSaved : Textbook {
  StateBytes save(const Memory&) const override { return {}; }
};

struct MovesEachMicroBatch : Textbook {
  void remember(const BalanceCase& step, Memory& memory) const override {
    for (int64_t m = 0; m < step.num_micro_batches; ++m) Textbook::remember(step, memory);
  }
};

struct ForgetsWhenStopped : Textbook {
  std::vector<double> fractions_E(const View& view) const override {
    if (view.step.interruption == Interruption::None) return Textbook::fractions_E(view);
    TokenGroup last = view.group;
    std::erase_if(last.counted, [&view](int64_t token) {
      return view.step.token(token).micro_batch + 1 < view.step.num_micro_batches;
    });
    return Textbook::fractions_E({view.step, last, view.layer, view.device, view.memory});
  }
};

struct EvaluationCounts : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    if (step.evaluation == Evaluation::None) return outcome;
    for (int64_t& count : outcome.step_counts_LE) count += step.num_micro_batches;
    return outcome;
  }
};

struct BalancingInTaskLoss : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    outcome.task_loss += outcome.weighted_loss;
    return outcome;
  }
};

struct SilentWithoutScores : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    BalanceCase other = step;
    if (step.wiring == Wiring::RouterPassesNothing) other.coefficient = 0.0;
    return Textbook::run_step(other, memory);
  }
};

struct LastMicroBatchOnly : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    outcome.step_counts_LE = outcome.micro_counts_MLE.back();
    return outcome;
  }
};

template <ScopeKind Given>
struct OtherScope : Textbook {
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    BalanceCase other = step;
    other.subject.scope.kind = Given;
    return Textbook::groups(other);
  }
};

template <typename Number>
struct CountsIn : Textbook {
  std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    std::vector<int64_t> sums_E;
    for (size_t expert = 0; expert < parts_ME.front().size(); ++expert) {
      Number sum = 0;
      for (const std::vector<int64_t>& part_E : parts_ME) sum = static_cast<Number>(sum + static_cast<Number>(part_E[expert]));
      sums_E.push_back(static_cast<int64_t>(sum));
    }
    return sums_E;
  }
};

template <typename Broken>
Mutant mutant(std::string bug, std::string id, std::string check, ScopeKind scope = ScopeKind::OptimizerBatch) {
  const Subject subject{"lbl", {.kind = scope, .num_sequences = 2, .decay = 0.9}};
  return {std::move(bug), std::move(id), std::move(check), subject, [] { return std::make_unique<Broken>(); }};
}

std::vector<Mutant> scale_mutants() {
  return {mutant<OverRanks>("gradient over the number of ranks", "B1", "rank-scale"),
          mutant<AlwaysTokenWeights>("weighting ignored", "B1", "dense-oracle", ScopeKind::MicroBatch),
          mutant<OverAccumulationSteps>("buffer over accumulation steps", "B2", "denominators", ScopeKind::Prefix),
          mutant<DeafToTokenMode>("token-weighted contract not followed", "B3", "contract"),
          mutant<TimesMicroBatches>("times the number of micro-batches", "B4", "accumulation"),
          mutant<NoGradient>("no gradient", "B5", "coefficient"),
          mutant<CoefficientUnused>("coefficient unused", "B5", "coefficient"),
          mutant<TimesRanks>("times the number of ranks", "B6", "enters-once"),
          mutant<AddedTwice>("added twice", "B6", "enters-once", ScopeKind::MicroBatch),
          mutant<CountsEachRun>("a forward that runs twice counts twice", "B7", "recompute")};
}

std::vector<Mutant> token_mutants() {
  return {mutant<CountsLargestScores>("choices of the router not used", "B8", "used-choices"),
          mutant<CountsPadding>("padding counted", "B9", "padding", ScopeKind::MicroBatch),
          mutant<NotANumberOfNothing>("a step of padding gives NaN", "B9", "padding"),
          mutant<RowIsSequence>("packed row taken for one sequence", "B10", "packing", ScopeKind::Sequence),
          mutant<MeanLength>("mean length for all", "B11", "own-length", ScopeKind::Sequence),
          mutant<CountsKeptOnly>("counts after the drop", "B12", "capacity"),
          mutant<NoDivisionByK>("no division by K", "B13", "every-choice"),
          mutant<FirstChoiceOnly>("first choice only", "B13", "every-choice"),
          mutant<LayersPooled>("layers pooled", "B14", "layers-apart"),
          mutant<SigmoidWithEps>("eps in the divisor of the scores", "B15", "normalised-scores"),
          mutant<NeverBelowOne>("value held at 1 or more", "B16", "no-certificate")};
}

std::vector<Mutant> layout_mutants() {
  return {mutant<CountsStayLocal>("result of all_reduce ignored", "B17", "collectives", ScopeKind::Ranks),
          mutant<TimesRanks>("all_reduce sums gradients", "B17", "collectives", ScopeKind::Ranks),
          mutant<WorldGroup>("group of all stages", "B18", "stages"),
          mutant<GroupWithoutContext>("group without context ranks", "B19", "layouts"),
          mutant<WorldGroup>("replicas counted", "B19", "layouts"),
          mutant<FrozenDenominator>("denominator of the first step", "B20", "new-denominators")};
}

std::vector<Mutant> state_mutants() {
  return {mutant<BufferNotEmptied>("buffer not emptied", "B21", "buffer", ScopeKind::Prefix),
          mutant<SavedInBf16>("state saved in bf16", "B22", "saved-state", ScopeKind::Ema),
          mutant<NotSaved>("state not saved", "B22", "saved-state", ScopeKind::PreviousStep),
          mutant<MovesEachMicroBatch>("state moves each micro-batch", "B22", "saved-state", ScopeKind::Ema),
          mutant<ForgetsWhenStopped>("counts of a step under way not saved", "B22", "saved-progress"),
          mutant<EvaluationCounts>("evaluation counts", "B23", "evaluation"),
          mutant<BalancingInTaskLoss>("balancing loss reported as task loss", "B23", "evaluation"),
          mutant<SilentWithoutScores>("silent without scores", "B24", "never-silent"),
          mutant<LastMicroBatchOnly>("metric of the last micro-batch", "B26", "metric-scope"),
          mutant<OtherScope<ScopeKind::Prefix>>("prefix called exact", "B27", "order"),
          mutant<OtherScope<ScopeKind::OptimizerBatch>>("exact called prefix", "B27", "order", ScopeKind::Prefix),
          mutant<CountsIn<float>>("counts in fp32", "B28", "exact-counts"),
          mutant<CountsIn<int32_t>>("counts in int32", "B28", "exact-counts"),
          mutant<CountsIn<double>>("counts in double", "B28", "exact-counts")};
}

}  // namespace

const std::vector<Mutant>& mutants() {
  static const std::vector<Mutant> kMutants = [] {
    std::vector<Mutant> all;
    for (const std::vector<Mutant>& part : {scale_mutants(), token_mutants(), layout_mutants(), state_mutants()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return kMutants;
}

}  // namespace switchyard::conform
