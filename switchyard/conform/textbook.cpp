#include "switchyard/conform/textbook.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

std::span<const double> row_E(const std::vector<double>& values_LTE, const BalanceCase& step, size_t row) {
  return {values_LTE.data() + row * static_cast<size_t>(step.num_experts), static_cast<size_t>(step.num_experts)};
}

double log_sum_exp(std::span<const double> logits_E) {
  const double largest = *std::max_element(logits_E.begin(), logits_E.end());
  double sum = 0.0;
  for (const double logit : logits_E) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

template <typename Number>
void append_numbers(const std::vector<Number>& numbers, StateBytes& state) {
  state.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number));
}

std::vector<int64_t> tokens_where(const BalanceCase& step, const auto& wanted) {
  std::vector<int64_t> found;
  for (int64_t token = 0; token < step.num_tokens(); ++token) {
    if (wanted(step.token(token))) found.push_back(token);
  }
  return found;
}

}  // namespace

double layer_coefficient(const BalanceCase& step) {
  return step.layers == LayerReduction::Mean ? step.coefficient / static_cast<double>(step.num_layers) : step.coefficient;
}

bool uses_earlier_steps(const Subject& subject) {
  return !is_token_loss(subject) && (subject.scope.kind == ScopeKind::PreviousStep || subject.scope.kind == ScopeKind::Ema);
}

bool keeps_state(const Subject& subject) { return uses_earlier_steps(subject) || !has_loss(subject); }

Capabilities Textbook::capabilities() const {
  Capabilities all = full_capabilities();
  for (const char* name : {"z_loss", "token_loss"}) all.subjects.push_back({name, {}});
  return all;
}

std::vector<double> Textbook::probabilities_E(std::span<const double> logits_E) const {
  const double normaliser = log_sum_exp(logits_E);
  std::vector<double> probs_E;
  for (const double logit : logits_E) probs_E.push_back(std::exp(logit - normaliser));
  return probs_E;
}

std::vector<int64_t> Textbook::requested(const BalanceCase& step, int64_t layer, int64_t token) const {
  return chosen_K(step, layer, token);
}

std::vector<int64_t> Textbook::adds_up_with(const DeviceGrid& grid, int64_t device) const { return token_group(grid, device); }

int64_t Textbook::device_of(const BalanceCase& step, int64_t layer, int64_t rank) {
  const DeviceGrid grid = step.devices();
  for (int64_t device = 0; device < num_devices(grid); ++device) {
    const std::vector<int64_t> layers = layers_of_stage(grid, place_of(grid, device).pipeline, step.num_layers);
    if (shard_of(grid, device) == rank && std::find(layers.begin(), layers.end(), layer) != layers.end()) return device;
  }
  throw UsageError(join_text("no device holds layer ", layer, " and share ", rank, " of the tokens"));
}

std::vector<int64_t> Textbook::counts_E(const BalanceCase& step, int64_t layer, int64_t device,
                                        const std::vector<int64_t>& tokens) const {
  const DeviceGrid grid = step.devices();
  const auto layers_of = [&](int64_t member) {
    return layers_of_stage(grid, place_of(grid, member).pipeline, step.num_layers);
  };
  const auto slot = static_cast<size_t>(layer - layers_of(device).front());
  std::vector<int64_t> sums_E(static_cast<size_t>(step.num_experts), 0);
  for (const int64_t member : adds_up_with(grid, device)) {
    const std::vector<int64_t> layers = layers_of(member);
    if (slot >= layers.size()) continue;
    for (const int64_t token : tokens) {
      if (step.token(token).rank != shard_of(grid, member)) continue;
      for (const int64_t expert : requested(step, layers[slot], token)) {
        sums_E[static_cast<size_t>(expert)] += times_counted(step, layers[slot]);
      }
    }
  }
  return sums_E;
}

std::vector<Textbook::TokenGroup> Textbook::groups(const BalanceCase& step) const {
  const Scope& scope = step.subject.scope;
  std::map<int64_t, int64_t> ordinal_of;  // of sequences, by first token
  std::map<int64_t, int64_t> last_of_row;
  std::map<int64_t, TokenGroup> by_number;
  for (int64_t index = 0; index < step.num_tokens(); ++index) {
    CaseToken token = step.token(index);
    if (!counts(token)) continue;
    if (!token.valid() && last_of_row.contains(token.row)) token.segment = last_of_row[token.row];
    last_of_row[token.row] = token.segment;
    const int64_t ordinal = ordinal_of.emplace(sequence_of(token), static_cast<int64_t>(ordinal_of.size())).first->second;
    int64_t number = 0;
    if (scope.kind == ScopeKind::Sequence) number = ordinal;
    if (scope.kind == ScopeKind::Sequences) number = ordinal / scope.num_sequences;
    if (scope.kind == ScopeKind::MicroBatch) number = token.micro_batch * step.num_ranks + token.rank;
    if (scope.kind == ScopeKind::Ranks || scope.kind == ScopeKind::Prefix) number = token.micro_batch;
    by_number[number].averaged.push_back(index);
  }
  std::vector<TokenGroup> found;
  double full_tokens = 0.0;
  for (auto& [number, group] : by_number) {
    if (!uses_earlier_steps(step.subject)) group.counted = group.averaged;
    if (scope.kind == ScopeKind::Prefix && !found.empty()) {
      const std::vector<int64_t>& before = found.back().counted;
      group.counted.insert(group.counted.begin(), before.begin(), before.end());
    }
    group.weight = step.weighting == GroupWeighting::Tokens ? static_cast<double>(group.averaged.size()) : 1.0;
    if (&group != &by_number.rbegin()->second) full_tokens += static_cast<double>(group.averaged.size());
    found.push_back(group);
  }
  const bool has_short_group = scope.kind == ScopeKind::Sequences && found.size() > 1 &&
                               static_cast<int64_t>(ordinal_of.size()) % scope.num_sequences != 0;
  if (has_short_group && step.weighting == GroupWeighting::Mean) {
    const double mean_tokens = full_tokens / static_cast<double>(found.size() - 1);
    found.back().weight = static_cast<double>(found.back().averaged.size()) / mean_tokens;
  }
  double sum = 0.0;
  for (const TokenGroup& group : found) sum += group.weight;
  for (TokenGroup& group : found) group.weight /= sum;
  return found;
}

std::vector<double> Textbook::fractions_E(const View& view) const {
  const auto num_experts = static_cast<size_t>(view.step.num_experts);
  if (uses_earlier_steps(view.step.subject)) {
    const std::vector<double>& kept_LE = view.memory.fractions_LE;
    if (kept_LE.empty()) return std::vector<double>(num_experts, 0.0);
    const auto begin = kept_LE.begin() + view.layer * view.step.num_experts;
    return {begin, begin + view.step.num_experts};
  }
  const std::vector<int64_t> sums_E = counts_E(view.step, view.layer, view.device, view.group.counted);
  const auto total = static_cast<double>(std::accumulate(sums_E.begin(), sums_E.end(), int64_t{0}));
  std::vector<double> fractions(num_experts, 0.0);
  if (total > 0)
    std::transform(sums_E.begin(), sums_E.end(), fractions.begin(),
                   [total](int64_t count) { return static_cast<double>(count) / total; });
  return fractions;
}

double Textbook::averaged_tokens(const View& view) const {
  const DeviceGrid grid = view.step.devices();
  int64_t number = 0;
  for (const int64_t member : adds_up_with(grid, view.device)) {
    number += std::count_if(view.group.averaged.begin(), view.group.averaged.end(),
                            [&](int64_t token) { return view.step.token(token).rank == shard_of(grid, member); });
  }
  return static_cast<double>(number);
}

std::vector<double> Textbook::mean_probs_E(const View& view) const {
  std::vector<double> means_E(static_cast<size_t>(view.step.num_experts), 0.0);
  for (const int64_t token : view.group.averaged) {
    const std::vector<double> probs_E =
        probabilities_E(row_E(view.step.logits_LTE, view.step, view.step.row(view.layer, token)));
    for (size_t expert = 0; expert < means_E.size(); ++expert) means_E[expert] += probs_E[expert];
  }
  for (double& mean : means_E) mean /= static_cast<double>(view.group.averaged.size());
  return means_E;
}

double Textbook::lbl_value(const BalanceCase& step, int64_t layer, const Memory& memory) const {
  double value = 0.0;
  for (const TokenGroup& group : groups(step)) {
    const int64_t rank = step.token(group.averaged.front()).rank;
    const View view{step, group, layer, device_of(step, layer, rank), memory};
    const std::vector<double> fractions = fractions_E(view);
    const std::vector<double> means = mean_probs_E(view);
    value += group.weight * static_cast<double>(step.num_experts) *
             std::inner_product(fractions.begin(), fractions.end(), means.begin(), 0.0);
  }
  return value;
}

double Textbook::contract_factor(const BalanceCase& step, int64_t micro_batch, int64_t rank) const {
  return 1.0 / caller_weight(step, micro_batch, rank);
}

void Textbook::add_through_probs(const BalanceCase& step, size_t row, std::span<const double> slope_E, double scale,
                                 std::vector<double>& gradient_LTE) const {
  const std::vector<double> probs_E = probabilities_E(row_E(step.logits_LTE, step, row));
  const double mean = std::inner_product(probs_E.begin(), probs_E.end(), slope_E.begin(), 0.0);
  for (size_t expert = 0; expert < probs_E.size(); ++expert) {
    gradient_LTE[row * probs_E.size() + expert] += scale * probs_E[expert] * (slope_E[expert] - mean);
  }
}

void Textbook::add_lbl_gradient(const BalanceCase& step, const Memory& memory, std::vector<double>& gradient_LTE) const {
  for (const TokenGroup& group : groups(step)) {
    for (int64_t layer = 0; layer < step.num_layers; ++layer) {
      for (int64_t rank = 0; rank < step.num_ranks; ++rank) {
        const View view{step, group, layer, device_of(step, layer, rank), memory};
        std::vector<double> slope_E = fractions_E(view);
        const double weight = layer_coefficient(step) * group.weight * static_cast<double>(step.num_experts);
        for (double& slope : slope_E) slope *= weight / averaged_tokens(view);
        for (const int64_t token : group.averaged) {
          const CaseToken& place = step.token(token);
          if (place.rank != rank) continue;
          const double scale = contract_factor(step, place.micro_batch, rank) * caller_weight(step, place.micro_batch, rank);
          add_through_probs(step, step.row(layer, token), slope_E, scale, gradient_LTE);
        }
      }
    }
  }
}

double Textbook::token_loss(const BalanceCase& step, size_t row) const {
  const auto logits_E = row_E(step.logits_LTE, step, row);
  if (step.subject.method == "z_loss") return std::pow(log_sum_exp(logits_E), 2);
  const std::vector<double> probs_E = probabilities_E(logits_E);
  return std::inner_product(probs_E.begin(), probs_E.end(), probs_E.begin(), 0.0);
}

void Textbook::add_token_gradient(const BalanceCase& step, std::vector<double>& gradient_LTE) const {
  const std::vector<int64_t> tokens = tokens_where(step, [this](const CaseToken& token) { return counts(token); });
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (const int64_t token : tokens) {
      const CaseToken& place = step.token(token);
      const size_t row = step.row(layer, token);
      const auto logits_E = row_E(step.logits_LTE, step, row);
      std::vector<double> slope_E = probabilities_E(logits_E);
      const double scale = 2.0 * contract_factor(step, place.micro_batch, place.rank) *
                           caller_weight(step, place.micro_batch, place.rank) * layer_coefficient(step) /
                           static_cast<double>(tokens.size());
      if (step.subject.method == "token_loss") {
        add_through_probs(step, row, slope_E, scale, gradient_LTE);
        continue;
      }
      for (size_t expert = 0; expert < slope_E.size(); ++expert) {
        gradient_LTE[row * slope_E.size() + expert] += scale * log_sum_exp(logits_E) * slope_E[expert];
      }
    }
  }
}

void Textbook::add_task(const BalanceCase& step, Outcome& outcome) const {
  if (step.task_LTE.empty()) return;
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (int64_t token = 0; token < step.num_tokens(); ++token) {
      if (!step.token(token).valid()) continue;
      const size_t row = step.row(layer, token);
      const auto task_E = row_E(step.task_LTE, step, row);
      const std::vector<double> probs_E = probabilities_E(row_E(step.logits_LTE, step, row));
      outcome.task_loss += std::inner_product(task_E.begin(), task_E.end(), probs_E.begin(), 0.0);
      add_through_probs(step, row, task_E, 1.0, outcome.gradient_LTE);
    }
  }
}

void Textbook::remember(const BalanceCase& step, Memory& memory) const {
  const std::vector<int64_t> tokens = tokens_where(step, [this](const CaseToken& token) { return counts(token); });
  if (tokens.empty()) return;  // padding says nothing about the experts
  memory.counts_LE.clear();
  const std::vector<double> before_LE = memory.fractions_LE;
  memory.fractions_LE.clear();
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    const std::vector<int64_t> sums_E = counts_E(step, layer, device_of(step, layer, 0), tokens);
    memory.counts_LE.insert(memory.counts_LE.end(), sums_E.begin(), sums_E.end());
    const auto total = static_cast<double>(std::accumulate(sums_E.begin(), sums_E.end(), int64_t{0}));
    for (const int64_t count : sums_E) memory.fractions_LE.push_back(static_cast<double>(count) / total);
  }
  if (step.subject.scope.kind != ScopeKind::Ema || before_LE.empty()) return;
  const double decay = step.subject.scope.decay;
  for (size_t i = 0; i < before_LE.size(); ++i) {
    memory.fractions_LE[i] = decay * before_LE[i] + (1.0 - decay) * memory.fractions_LE[i];
  }
}

StateBytes Textbook::save(const Memory& memory) const {
  StateBytes state;
  append_numbers(memory.counts_LE, state);
  append_numbers(memory.fractions_LE, state);
  return state;
}

Textbook::Memory Textbook::load(const StateBytes& saved) {
  Memory memory;
  const size_t number = saved.size() / (sizeof(int64_t) + sizeof(double));
  if (number == 0) return memory;
  memory.counts_LE.resize(number);
  memory.fractions_LE.resize(number);
  std::memcpy(memory.counts_LE.data(), saved.data(), number * sizeof(int64_t));
  std::memcpy(memory.fractions_LE.data(), saved.data() + number * sizeof(int64_t), number * sizeof(double));
  return memory;
}

Outcome Textbook::run_step(const BalanceCase& step, Memory& memory) const {
  SWITCHYARD_CHECK(step.wiring == Wiring::Whole || step.coefficient == 0.0, StateError,
                   "the router did not pass its scores on, so the loss cannot act");
  const bool is_of_tokens = is_token_loss(step.subject);
  const bool is_lbl = step.subject.method == "lbl";
  const bool has_value = is_of_tokens || (is_lbl && !uses_earlier_steps(step.subject)) || (is_lbl && !memory.fractions_LE.empty());
  const std::vector<int64_t> tokens = tokens_where(step, [this](const CaseToken& token) { return counts(token); });
  Outcome outcome;
  outcome.gradient_LTE.assign(step.logits_LTE.size(), 0.0);
  outcome.micro_counts_MLE.resize(static_cast<size_t>(step.num_micro_batches));
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    const int64_t device = device_of(step, layer, 0);
    const std::vector<int64_t> sums_E = counts_E(step, layer, device, tokens);
    outcome.step_counts_LE.insert(outcome.step_counts_LE.end(), sums_E.begin(), sums_E.end());
    for (int64_t m = 0; m < step.num_micro_batches; ++m) {
      const std::vector<int64_t> own =
          tokens_where(step, [this, m](const CaseToken& token) { return counts(token) && token.micro_batch == m; });
      const std::vector<int64_t> part_E = counts_E(step, layer, device, own);
      std::vector<int64_t>& micro_LE = outcome.micro_counts_MLE[static_cast<size_t>(m)];
      micro_LE.insert(micro_LE.end(), part_E.begin(), part_E.end());
    }
    if (!has_value) continue;
    double value = is_of_tokens ? 0.0 : lbl_value(step, layer, memory);
    for (const int64_t token : is_of_tokens ? tokens : std::vector<int64_t>{}) {
      value += token_loss(step, step.row(layer, token)) / static_cast<double>(tokens.size());
    }
    outcome.value_L.push_back(value);
    outcome.weighted_loss += layer_coefficient(step) * value;
  }
  if (is_of_tokens) add_token_gradient(step, outcome.gradient_LTE);
  if (is_lbl) add_lbl_gradient(step, memory, outcome.gradient_LTE);
  add_task(step, outcome);
  remember(step, memory);
  outcome.state = save(memory);
  return outcome;
}

std::vector<Outcome> Textbook::run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const {
  Memory memory = load(saved);
  std::vector<Outcome> outcomes;
  for (const BalanceCase& step : steps) {
    check_case(step);
    outcomes.push_back(run_step(step, memory));
  }
  return outcomes;
}

std::vector<int64_t> Textbook::accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const {
  std::vector<int64_t> sums_E(parts_ME.front().size(), 0);
  for (const std::vector<int64_t>& part_E : parts_ME) {
    for (size_t expert = 0; expert < part_E.size(); ++expert) sums_E[expert] += part_E[expert];
  }
  return sums_E;
}

}  // namespace switchyard::conform
