#include "switchyard/conform/own.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <numeric>

#include "switchyard/balance/ledger.hpp"
#include "switchyard/conform/own_stage.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

constexpr const char* kName = "switchyard";

// A tensor of the state as bytes: one that says whether it is there, then its numbers.
void append_tensor(const at::Tensor& tensor, StateBytes& state) {
  state.push_back(tensor.defined() ? '1' : '0');
  if (!tensor.defined()) return;
  const at::Tensor host = tensor.contiguous();
  state.append(static_cast<const char*>(host.const_data_ptr()), host.nbytes());
}

at::Tensor take_tensor(const StateBytes& state, size_t& position, at::ScalarType type, c10::IntArrayRef sizes) {
  SWITCHYARD_CHECK(position < state.size(), DataError, "saved balance state ends at byte ", position);
  if (state[position++] == '0') return {};
  at::Tensor tensor = at::empty(sizes, type);
  SWITCHYARD_CHECK(state.size() - position >= tensor.nbytes(), DataError, "saved balance state holds ", state.size(),
                   " bytes; expected ", tensor.nbytes(), " from byte ", position);
  std::memcpy(tensor.mutable_data_ptr(), state.data() + position, tensor.nbytes());
  position += tensor.nbytes();
  return tensor;
}

StateBytes save(const BalanceState& state) {
  StateBytes bytes;
  append_tensor(state.previous_counts_LE, bytes);
  append_tensor(state.ema_fractions_LE, bytes);
  return bytes;
}

BalanceState load(const StateBytes& bytes, const BalanceCase& step) {
  BalanceState state;
  if (bytes.empty()) return state;
  size_t position = 0;
  const std::vector<int64_t> sizes = {step.num_layers, step.num_experts};
  state.previous_counts_LE = take_tensor(bytes, position, at::kLong, sizes);
  state.ema_fractions_LE = take_tensor(bytes, position, at::kDouble, sizes);
  return state;
}

at::Tensor rows_of_layers(const at::Tensor& values_LE, const std::vector<int64_t>& layers) {
  if (!values_LE.defined()) return {};
  return values_LE.narrow(0, layers.front(), static_cast<int64_t>(layers.size())).contiguous();
}

at::Tensor joined(const at::Tensor& above, const at::Tensor& below) {
  if (!above.defined()) return below;
  return at::cat({above, below});
}

class OwnImplementation : public Implementation {
 public:
  [[nodiscard]] std::string name() const override { return kName; }

  [[nodiscard]] Capabilities capabilities() const override {
    Capabilities all;
    for (const ScopeInfo& info : scope_table()) {
      all.subjects.push_back({"lbl",
                              {.kind = info.kind,
                               .num_sequences = info.kind == ScopeKind::Sequences ? 2 : 0,
                               .decay = info.kind == ScopeKind::Ema ? 0.9 : 0.0}});
    }
    all.subjects.push_back({"z_loss", {}});
    for (int feature = 0; feature <= static_cast<int>(Feature::CountAccumulation); ++feature) {
      all.features.insert(static_cast<Feature>(feature));
    }
    using enum Averaging;
    all.contracts = {{Mean, Mean}, {Sum, Sum}, {ByTokens, ByTokens}};
    return all;
  }

  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    std::vector<Outcome> outcomes;
    BalanceState state = load(saved, steps.front());
    for (const BalanceCase& step : steps) {
      check_case(step);
      outcomes.push_back(run_step(step, state));
    }
    return outcomes;
  }

  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    StepPlan plan;
    plan.forward_begin = {0};
    for (const std::vector<int64_t>& part_E : parts_ME) {
      plan.segment_tokens.push_back(std::accumulate(part_E.begin(), part_E.end(), int64_t{0}));
      plan.segment_micro_batch.push_back(plan.num_segments() - 1);
      plan.forward_begin.push_back(plan.num_segments());
    }
    const auto num_experts = static_cast<int64_t>(parts_ME.front().size());
    StepLedger ledger(plan, 1, num_experts);
    for (int64_t m = 0; m < plan.num_forwards(); ++m) {
      SegmentStatistics statistics;
      statistics.counts.counts_GE = at::empty({1, num_experts}, at::kLong);
      const std::vector<int64_t>& part_E = parts_ME[static_cast<size_t>(m)];
      std::copy(part_E.begin(), part_E.end(), statistics.counts.counts_GE.mutable_data_ptr<int64_t>());
      statistics.counts.tokens_G = at::empty({1}, at::kLong).fill_(plan.segment_tokens[static_cast<size_t>(m)]);
      ledger.record(m, 0, statistics);
    }
    return ledger.counts_E(Counted::Slots, 0, {0, plan.num_segments()});
  }

 private:
  // Every stage by itself, as its devices would: nothing crosses stages.
  static Outcome run_step(const BalanceCase& step, BalanceState& state) {
    Outcome outcome;
    outcome.gradient_LTE.assign(step.logits_LTE.size(), 0.0);
    outcome.micro_counts_MLE.resize(static_cast<size_t>(step.num_micro_batches));
    BalanceState after;
    for (int64_t number = 0; number < step.devices().pipeline; ++number) {
      const std::vector<int64_t> layers = layers_of_stage(step.devices(), number, step.num_layers);
      BalanceState own{.previous_counts_LE = rows_of_layers(state.previous_counts_LE, layers),
                       .ema_fractions_LE = rows_of_layers(state.ema_fractions_LE, layers)};
      Stage stage(step, layers, own);
      stage.run(outcome);
      take_numbers(stage, outcome);
      stage.balance().finish(own);
      after.previous_counts_LE = joined(after.previous_counts_LE, own.previous_counts_LE);
      after.ema_fractions_LE = joined(after.ema_fractions_LE, own.ema_fractions_LE);
    }
    state = after;
    outcome.state = save(state);
    return outcome;
  }

  static void take_numbers(const Stage& stage, Outcome& outcome) {
    const at::Tensor counts_LE = stage.balance().step_counts_LE().contiguous();
    const int64_t* counts = counts_LE.const_data_ptr<int64_t>();
    outcome.step_counts_LE.insert(outcome.step_counts_LE.end(), counts, counts + counts_LE.numel());
    const at::Tensor parts_MLE = stage.balance().micro_batch_counts_MLE();
    for (size_t m = 0; m < outcome.micro_counts_MLE.size(); ++m) {
      const at::Tensor sum_LE = parts_MLE.narrow(0, static_cast<int64_t>(m) * stage.parts(), stage.parts()).sum(0).contiguous();
      const int64_t* sums = sum_LE.const_data_ptr<int64_t>();
      outcome.micro_counts_MLE[m].insert(outcome.micro_counts_MLE[m].end(), sums, sums + sum_LE.numel());
    }
    const BalanceValues values = stage.balance().values();
    const std::vector<double>& value_L = values.z_loss_L.empty() ? values.lbl_L : values.z_loss_L;
    outcome.value_L.insert(outcome.value_L.end(), value_L.begin(), value_L.end());
    outcome.weighted_loss += values.weighted_loss;
  }
};

}  // namespace

std::unique_ptr<Implementation> own_implementation() { return std::make_unique<OwnImplementation>(); }

}  // namespace switchyard::conform
