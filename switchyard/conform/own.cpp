#include "switchyard/conform/own.hpp"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <numeric>

#include "switchyard/balance/ledger.hpp"
#include "switchyard/balance/method.hpp"
#include "switchyard/comm/threads.hpp"
#include "switchyard/conform/own_device.hpp"
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
  append_tensor(state.selection_offsets_LE, bytes);
  return bytes;
}

BalanceState load(const StateBytes& bytes, const BalanceCase& step) {
  BalanceState state;
  if (bytes.empty()) return state;
  size_t position = 0;
  const std::vector<int64_t> sizes = {step.num_layers, step.num_experts};
  state.previous_counts_LE = take_tensor(bytes, position, at::kLong, sizes);
  state.ema_fractions_LE = take_tensor(bytes, position, at::kDouble, sizes);
  state.selection_offsets_LE = take_tensor(bytes, position, at::kFloat, sizes);
  return state;
}

at::Tensor rows_of_layers(const at::Tensor& values_LE, const std::vector<int64_t>& layers) {
  if (!values_LE.defined()) return {};
  return values_LE.narrow(0, layers.front(), static_cast<int64_t>(layers.size())).contiguous();
}

at::Tensor stacked(const at::Tensor& above, const at::Tensor& below) {
  if (!above.defined()) return below;
  return at::cat({above, below});
}

class OwnImplementation : public Implementation {
 public:
  [[nodiscard]] std::string name() const override { return kName; }

  [[nodiscard]] Capabilities capabilities() const override {
    Capabilities all = full_capabilities();
    for (const BalancerEntry& entry : balancer_table()) {
      // Settings are no losses of statistics: those that see tokens follow below; SimBal sees none.
      if (entry.name == "lbl" || entry.name == "none" || entry.kind == BalancerKind::Setting) continue;
      all.subjects.push_back({std::string(entry.name), {.kind = ScopeKind::OptimizerBatch}});
      all.subjects.push_back({std::string(entry.name), {.kind = ScopeKind::MicroBatch}});
    }
    all.subjects.push_back({"mixed_lbl", {.kind = ScopeKind::MicroBatch}});  // what holds for its narrower scope holds
    for (const char* name : {"z_loss", "token_loss", "bias", "bias_centered", "quantile"}) all.subjects.push_back({name, {}});
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
  // Every stage by itself, as its devices would: nothing crosses stages. Its devices are threads.
  static Outcome run_step(const BalanceCase& step, BalanceState& state) {
    Outcome outcome;
    outcome.gradient_LTE.assign(step.logits_LTE.size(), 0.0);
    outcome.micro_counts_MLE.resize(static_cast<size_t>(step.num_micro_batches));
    BalanceState after;
    for (int64_t stage = 0; stage < step.devices().pipeline; ++stage) {
      BalanceState own = of_layers(state, layers_of_stage(step.devices(), stage, step.num_layers));
      add_stage(step, stage, own, outcome);
      after.previous_counts_LE = stacked(after.previous_counts_LE, own.previous_counts_LE);
      after.ema_fractions_LE = stacked(after.ema_fractions_LE, own.ema_fractions_LE);
      after.selection_offsets_LE = stacked(after.selection_offsets_LE, own.selection_offsets_LE);
    }
    state = after;
    outcome.state = save(state);
    return outcome;
  }

  static BalanceState of_layers(const BalanceState& state, const std::vector<int64_t>& layers) {
    return {.previous_counts_LE = rows_of_layers(state.previous_counts_LE, layers),
            .ema_fractions_LE = rows_of_layers(state.ema_fractions_LE, layers),
            .selection_offsets_LE = rows_of_layers(state.selection_offsets_LE, layers)};
  }

  static void add_stage(const BalanceCase& step, int64_t stage, BalanceState& state, Outcome& outcome) {
    const std::vector<DeviceShare> shares = shares_of_stage(step, stage);
    std::vector<Outcome> parts(shares.size());
    std::vector<BalanceState> states(shares.size(), state);
    const auto run_device = [&](size_t index, Communicator* comm) {
      OwnDevice device(step, shares[index], state, comm);
      device.run(parts[index]);
      device.finish(states[index]);
      parts[index].state = save(states[index]);
    };
    if (shares.size() == 1) run_device(0, nullptr);
    if (shares.size() > 1) {
      run_ranks(static_cast<int64_t>(shares.size()),
                [&](Communicator& comm) { run_device(static_cast<size_t>(comm.rank()), &comm); });
    }
    for (size_t index = 0; index < shares.size(); ++index) {
      check_agrees(parts[index], parts.front(), index);
      if (shares[index].ranks.replica == 0)
        add_tokens(parts[index], outcome);
      else
        check_replica(shares, parts, index);
    }
    add_numbers(parts.front(), outcome);
    state = states.front();
  }

  // What every device of a stage must see alike.
  static void check_agrees(const Outcome& part, const Outcome& first, size_t index) {
    SWITCHYARD_CHECK(part.step_counts_LE == first.step_counts_LE && part.value_L == first.value_L &&
                         part.weighted_loss == first.weighted_loss && part.state == first.state,
                     StateError, "device ", index, " of a stage ends with other counts, values or state than device 0");
  }

  static void check_replica(const std::vector<DeviceShare>& shares, const std::vector<Outcome>& parts, size_t index) {
    for (size_t other = 0; other < shares.size(); ++other) {
      if (shares[other].rank != shares[index].rank || shares[other].ranks.replica != 0) continue;
      SWITCHYARD_CHECK(parts[other].gradient_LTE == parts[index].gradient_LTE, StateError, "device ", index,
                       " has other gradients than device ", other, ", whose tokens it copies");
    }
  }

  static void add_tokens(const Outcome& part, Outcome& outcome) {
    outcome.task_loss += part.task_loss;
    for (size_t i = 0; i < part.gradient_LTE.size(); ++i) outcome.gradient_LTE[i] += part.gradient_LTE[i];
  }

  static void add_numbers(const Outcome& part, Outcome& outcome) {
    outcome.step_counts_LE.insert(outcome.step_counts_LE.end(), part.step_counts_LE.begin(), part.step_counts_LE.end());
    for (size_t m = 0; m < outcome.micro_counts_MLE.size(); ++m) {
      const std::vector<int64_t>& from = part.micro_counts_MLE[m];
      outcome.micro_counts_MLE[m].insert(outcome.micro_counts_MLE[m].end(), from.begin(), from.end());
    }
    outcome.value_L.insert(outcome.value_L.end(), part.value_L.begin(), part.value_L.end());
    outcome.weighted_loss += part.weighted_loss;
  }
};

}  // namespace

std::unique_ptr<Implementation> own_implementation() { return std::make_unique<OwnImplementation>(); }

}  // namespace switchyard::conform
