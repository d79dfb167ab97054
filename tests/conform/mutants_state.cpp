// The broken implementations for B21 to B28: state, evaluation, metrics, integers.

#include <cstring>
#include <numeric>

#include "mutants.hpp"
#include "switchyard/conform/own.hpp"

namespace switchyard::conform {
namespace {

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

struct EmaForgets : Textbook {  // the decay is not used
  void remember(const BalanceCase& step, Memory& memory) const override {
    memory.fractions_LE.clear();
    Textbook::remember(step, memory);
  }
};

struct EmaTurnedRound : Textbook {  // decay and 1 - decay swapped
  void remember(const BalanceCase& step, Memory& memory) const override {
    BalanceCase other = step;
    other.subject.scope.decay = 1.0 - step.subject.scope.decay;
    Textbook::remember(other, memory);
  }
};

struct AllEarlierSteps : Textbook {  // the counts of the previous step are added to those before
  void remember(const BalanceCase& step, Memory& memory) const override {
    const std::vector<int64_t> before_LE = memory.counts_LE;
    Textbook::remember(step, memory);
    const auto num_experts = static_cast<size_t>(step.num_experts);
    std::vector<int64_t>& counts_LE = memory.counts_LE;
    for (size_t i = 0; i < before_LE.size(); ++i) counts_LE[i] += before_LE[i];
    for (size_t i = 0; i < counts_LE.size(); ++i) {
      const auto row = counts_LE.begin() + static_cast<std::ptrdiff_t>(i / num_experts * num_experts);
      const auto total = static_cast<double>(std::accumulate(row, row + step.num_experts, int64_t{0}));
      memory.fractions_LE[i] = static_cast<double>(counts_LE[i]) / total;
    }
  }
};

struct BufferSaved : Textbook {  // of a scope of this step: never emptied, and saved with the state
  std::vector<double> fractions_E(const View& view) const override {
    if (uses_earlier_steps(view.step.subject)) return Textbook::fractions_E(view);
    std::vector<int64_t> sums_E = counts_E(view.step, view.layer, view.device, view.group.counted);
    const size_t begin = static_cast<size_t>(view.layer) * sums_E.size();
    for (size_t e = 0; e < sums_E.size() && !view.memory.counts_LE.empty(); ++e) sums_E[e] += view.memory.counts_LE[begin + e];
    const auto total = static_cast<double>(std::accumulate(sums_E.begin(), sums_E.end(), int64_t{0}));
    std::vector<double> fractions;
    for (const int64_t count : sums_E) fractions.push_back(static_cast<double>(count) / total);
    return fractions;
  }
  void remember(const BalanceCase& step, Memory& memory) const override {
    const std::vector<int64_t> before_LE = memory.counts_LE;
    Textbook::remember(step, memory);
    for (size_t i = 0; i < before_LE.size(); ++i) memory.counts_LE[i] += before_LE[i];
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
    std::erase_if(last.counted,
                  [&view](int64_t token) { return view.step.token(token).micro_batch + 1 < view.step.num_micro_batches; });
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

template <Wiring Bad>
struct SilentUnder : Textbook {
  Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    BalanceCase other = step;
    if (step.wiring == Bad) other.coefficient = 0.0;
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

// Our own library, as the textbook has no rules that correct choices.
class OffsetsTurnedRound : public Implementation {
 public:
  [[nodiscard]] std::string name() const override { return "offsets turned round"; }
  [[nodiscard]] Capabilities capabilities() const override { return own_->capabilities(); }
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    std::vector<Outcome> outcomes = own_->run_steps(steps, saved);
    for (size_t i = 0; i < outcomes.size() && !has_loss(steps[i].subject); ++i) {
      for (double& offset : outcomes[i].value_L) offset = -offset;
    }
    return outcomes;
  }
  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    return own_->accumulate(parts_ME);
  }

 private:
  std::unique_ptr<Implementation> own_ = own_implementation();
};

Mutant rule_mutant(std::string rule) {
  return {"offsets turned round: " + rule,
          "B24",
          "never-silent",
          {std::move(rule), {}},
          [] { return std::make_unique<OffsetsTurnedRound>(); },
          [] { return own_implementation(); }};
}

}  // namespace

std::vector<Mutant> state_mutants() {
  return {mutant<BufferNotEmptied>("buffer not emptied", "B21", "buffer", ScopeKind::Prefix),
          mutant<BufferSaved>("buffer not emptied and saved with the state", "B21", "buffer"),
          mutant<AllEarlierSteps>("counts of all earlier steps", "B21", "buffer", ScopeKind::PreviousStep),
          mutant<EmaForgets>("decay not used", "B21", "buffer", ScopeKind::Ema),
          mutant<EmaTurnedRound>("decay turned round", "B21", "buffer", ScopeKind::Ema),
          mutant<SavedInBf16>("state saved in bf16", "B22", "saved-state", ScopeKind::Ema),
          mutant<NotSaved>("state not saved", "B22", "saved-state", ScopeKind::PreviousStep),
          mutant<MovesEachMicroBatch>("state moves each micro-batch", "B22", "saved-state", ScopeKind::Ema),
          mutant<ForgetsWhenStopped>("counts of a step under way not saved", "B22", "saved-progress"),
          mutant<EvaluationCounts>("evaluation counts", "B23", "evaluation"),
          mutant<BalancingInTaskLoss>("balancing loss reported as task loss", "B23", "evaluation"),
          mutant<SilentUnder<Wiring::RouterPassesNothing>>("silent without scores", "B24", "never-silent"),
          mutant<SilentUnder<Wiring::RouterDropsResult>>("silent where what it returned is dropped", "B24", "never-silent"),
          rule_mutant("bias"),
          rule_mutant("bias_centered"),
          rule_mutant("quantile"),
          mutant<LastMicroBatchOnly>("metric of the last micro-batch", "B26", "metric-scope"),
          mutant<OtherScope<ScopeKind::Prefix>>("prefix called exact", "B27", "order"),
          mutant<OtherScope<ScopeKind::OptimizerBatch>>("exact called prefix", "B27", "order", ScopeKind::Prefix),
          mutant<CountsIn<float>>("counts in fp32", "B28", "exact-counts"),
          mutant<CountsIn<int32_t>>("counts in int32", "B28", "exact-counts"),
          mutant<CountsIn<double>>("counts in double", "B28", "exact-counts")};
}

}  // namespace switchyard::conform
