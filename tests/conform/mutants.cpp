#include "mutants.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <tuple>

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

struct EntryForEachRun : Textbook {  // the list of micro-batch counts grows with each run
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    Outcome outcome = Textbook::run_step(step, memory);
    const int64_t runs = step.runs_L.empty() ? 1 : *std::max_element(step.runs_L.begin(), step.runs_L.end());
    for (int64_t run = 1; run < runs; ++run) outcome.micro_counts_MLE.push_back(outcome.micro_counts_MLE.back());
    return outcome;
  }
};

// --- Groups of a step: B1.

struct ShortGroupDropped : Textbook {
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    std::vector<TokenGroup> full = Textbook::groups(step);
    std::set<int64_t> segments;
    for (const CaseToken& token : step.tokens) {
      if (token.valid()) segments.insert(token.segment);
    }
    const Scope& scope = step.subject.scope;
    if (scope.kind != ScopeKind::Sequences || full.size() < 2 || std::ssize(segments) % scope.num_sequences == 0) return full;
    const double rest = 1.0 - full.back().weight;
    full.pop_back();
    for (TokenGroup& group : full) group.weight /= rest;
    return full;
  }
};

struct ShortGroupWeighsFull : Textbook {
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    std::vector<TokenGroup> all = Textbook::groups(step);
    for (TokenGroup& group : all) {  // of scopes without short groups it is what they weigh
      if (step.weighting == GroupWeighting::Mean) group.weight = 1.0 / static_cast<double>(all.size());
    }
    return all;
  }
};

struct GroupsEndWithTheMicroBatch : Textbook {  // each micro-batch grouped as if it were the step
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    if (step.subject.scope.kind != ScopeKind::Sequences) return Textbook::groups(step);
    std::vector<TokenGroup> all;
    double sum = 0.0;
    for (int64_t m = 0; m < step.num_micro_batches; ++m) {
      BalanceCase part = step;
      for (CaseToken& token : part.tokens) {
        if (token.micro_batch != m) token.segment = kPadding;
      }
      for (TokenGroup& group : Textbook::groups(part)) {
        group.weight = step.weighting == GroupWeighting::Tokens ? static_cast<double>(group.averaged.size()) : 1.0;
        sum += group.weight;
        all.push_back(group);
      }
    }
    for (TokenGroup& group : all) group.weight /= sum;
    return all;
  }
};

struct MeanOverEmptyForwards : Textbook {  // 1 / M with those of padding among the M
  std::vector<TokenGroup> groups(const BalanceCase& step) const override {
    std::vector<TokenGroup> all = Textbook::groups(step);
    const ScopeKind kind = step.subject.scope.kind;
    const bool of_forwards = kind == ScopeKind::MicroBatch || kind == ScopeKind::Ranks || kind == ScopeKind::Prefix;
    if (!of_forwards || step.weighting != GroupWeighting::Mean) return all;
    const int64_t each = kind == ScopeKind::MicroBatch ? step.num_ranks : 1;
    for (TokenGroup& group : all) group.weight = 1.0 / static_cast<double>(step.num_micro_batches * each);
    return all;
  }
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

struct TokenWeightsWithPadding : Textbook {  // of a micro-batch, when the callers weigh it by its valid tokens
  double contract_factor(const BalanceCase& step, int64_t m, int64_t rank) const override {
    if (step.contract.micro_batches != Averaging::ByTokens) return Textbook::contract_factor(step, m, rank);
    BalanceCase all_valid = step;
    for (CaseToken& token : all_valid.tokens) token.segment = 0;
    return 1.0 / caller_weight(all_valid, m, rank);
  }
};

struct ValidTokensFirst : Textbook {  // takes the first n tokens of a row for its n valid ones
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    using Row = std::tuple<int64_t, int64_t, int64_t>;
    const auto row_of = [](const CaseToken& token) { return Row(token.micro_batch, token.rank, token.row); };
    std::map<Row, std::deque<int64_t>> segments_of;
    for (const CaseToken& token : step.tokens) {
      if (token.valid()) segments_of[row_of(token)].push_back(token.segment);
    }
    BalanceCase moved = step;
    for (CaseToken& token : moved.tokens) {
      std::deque<int64_t>& left = segments_of[row_of(token)];
      token.segment = left.empty() ? kPadding : left.front();
      if (!left.empty()) left.pop_front();
    }
    return Textbook::run_step(moved, memory);
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

std::vector<Mutant> scale_mutants() {
  return {mutant<OverRanks>("gradient over the number of ranks", "B1", "rank-scale"),
          mutant<AlwaysTokenWeights>("weighting ignored", "B1", "dense-oracle", ScopeKind::MicroBatch),
          mutant<ShortGroupDropped>("short last group dropped", "B1", "dense-oracle", ScopeKind::Sequences),
          mutant<ShortGroupWeighsFull>("short last group weighs as a full one", "B1", "dense-oracle", ScopeKind::Sequences),
          mutant<GroupsEndWithTheMicroBatch>("groups end with the micro-batch", "B1", "dense-oracle", ScopeKind::Sequences),
          mutant<MeanOverEmptyForwards>("mean over empty forwards too", "B1", "dense-oracle", ScopeKind::MicroBatch),
          mutant<OverAccumulationSteps>("buffer over accumulation steps", "B2", "denominators", ScopeKind::Prefix),
          mutant<DeafToTokenMode>("token-weighted contract not followed", "B3", "contract"),
          mutant<TimesMicroBatches>("times the number of micro-batches", "B4", "accumulation"),
          mutant<NoGradient>("no gradient", "B5", "coefficient"),
          mutant<CoefficientUnused>("coefficient unused", "B5", "coefficient"),
          mutant<TimesRanks>("times the number of ranks", "B6", "enters-once"),
          mutant<AddedTwice>("added twice", "B6", "enters-once", ScopeKind::MicroBatch),
          mutant<CountsEachRun>("a forward that runs twice counts twice", "B7", "recompute"),
          mutant<EntryForEachRun>("one entry of counts for each run", "B7", "recompute")};
}

std::vector<Mutant> token_mutants() {
  return {mutant<CountsLargestScores>("choices of the router not used", "B8", "used-choices"),
          mutant<CountsPadding>("padding counted", "B9", "padding", ScopeKind::MicroBatch),
          mutant<MeanOverEmptyForwards>("mean over micro-batches of padding too", "B9", "padding", ScopeKind::Ranks),
          mutant<TokenWeightsWithPadding>("token weights with padding", "B9", "padding"),
          mutant<ValidTokensFirst>("padding before tokens not expected", "B9", "padding"),
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
