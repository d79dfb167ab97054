#include "switchyard/data/batcher.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

constexpr auto kCompositions =
    std::to_array<Spelling<Composition>>({{Composition::OneDomain, "one_domain"}, {Composition::Mixed, "mixed"}});

template <typename Item>
void shuffle(std::vector<Item>& items, Rng rng) {
  for (size_t left = items.size(); left > 1; --left) std::swap(items[left - 1], items[rng.below(left)]);
}

uint64_t as_word(int64_t value) { return static_cast<uint64_t>(value); }

// Windows that a grid shifted by any offset in [0, S) still holds.
int64_t windows_per_epoch(int64_t num_tokens, int64_t length) { return std::max<int64_t>(0, (num_tokens - length) / length); }

// The order of one epoch of one domain.
struct Epoch {
  int64_t number = -1;
  int64_t offset = 0;
  std::vector<int64_t> order;
};

// One domain as the batcher sees it.
struct Source {
  int64_t domain = 0;  // in the data set
  int64_t label = 0;
  double weight = 1.0;
  int64_t windows = 0;
  Epoch epoch;  // cache; a function of (seed, domain, number)
};

Epoch make_epoch(uint64_t seed, const Source& source, int64_t number, int64_t length) {
  const uint64_t domain = as_word(source.domain);
  Epoch epoch;
  epoch.number = number;
  epoch.offset = static_cast<int64_t>(Rng(seed, "data_offset", {domain, as_word(number)}).below(as_word(length)));
  epoch.order.resize(static_cast<size_t>(source.windows));
  std::iota(epoch.order.begin(), epoch.order.end(), int64_t{0});
  shuffle(epoch.order, Rng(seed, "data", {domain, as_word(number)}));
  return epoch;
}

Window draw_window(Source& source, int64_t draw, int64_t length, uint64_t seed) {
  const int64_t number = draw / source.windows;
  if (source.epoch.number != number) source.epoch = make_epoch(seed, source, number, length);
  const int64_t place = source.epoch.order[static_cast<size_t>(draw % source.windows)];
  return {source.domain, source.label, source.epoch.offset + place * length};
}

// Systematic sampling: M evenly spaced points with one random offset fall on the sources laid end to end by weight.
std::vector<size_t> sample_sources(const std::vector<Source>& sources, int64_t count, uint64_t seed, int64_t step) {
  std::vector<size_t> order(sources.size());
  std::iota(order.begin(), order.end(), size_t{0});
  shuffle(order, Rng(seed, "data_domain_order", {as_word(step)}));
  double total = 0.0;
  for (const size_t index : order) total += sources[index].weight;
  // 2^20 offsets strictly inside (0, 1): rounding cannot push a point over the boundary it lies beside when M = N.
  constexpr uint64_t kOffsets = uint64_t{1} << 20;
  const double offset = (static_cast<double>(Rng(seed, "data_domain_offset", {as_word(step)}).below(kOffsets)) + 0.5) /
                        static_cast<double>(kOffsets);
  std::vector<size_t> sampled;
  size_t at = 0;
  double end = sources[order[0]].weight;
  for (int64_t m = 0; m < count; ++m) {
    const double point = (static_cast<double>(m) + offset) * total / static_cast<double>(count);
    while (point >= end && at + 1 < order.size()) end += sources[order[++at]].weight;
    sampled.push_back(order[at]);
  }
  shuffle(sampled, Rng(seed, "data_micro_batch_order", {as_word(step)}));
  return sampled;
}

void check_weights(const BatcherConfig& config, const std::vector<std::string>& chosen) {
  for (const auto& [name, weight] : config.weights) {
    SWITCHYARD_CHECK(std::find(chosen.begin(), chosen.end(), name) != chosen.end(), ConfigError,
                     "data.weights: ", unknown_name("domain", name, chosen));
  }
  if (config.weights.empty()) return;
  for (const std::string& name : chosen) {
    SWITCHYARD_CHECK(config.weights.contains(name), ConfigError, "data.weights: domain '", name,
                     "' has none; give every chosen domain a weight, or leave the table out for equal ones");
  }
}

}  // namespace

std::string to_string(const Composition& value) { return spelling_of(kCompositions, value); }
void parse(std::string_view text, Composition& value) { value = from_spelling("composition", kCompositions, text); }

void BatcherConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(sequence_length >= 1, "sequence_length", sequence_length, "at least 1");
  check(sequences_per_micro_batch >= 1, "sequences_per_micro_batch", sequences_per_micro_batch, "at least 1");
  check(micro_batches >= 1, "micro_batches", micro_batches, "at least 1");
  for (const auto& [name, weight] : weights) {
    check(std::isfinite(weight) && weight > 0.0, "weights." + name, weight,
          "a positive number (leave the domain out of 'domains' for none)");
  }
}

struct Batcher::Impl {
  const Dataset& dataset;
  BatcherConfig config;
  uint64_t seed;
  std::vector<std::string> names;
  std::vector<Source> sources;
  BatcherState state;

  Impl(const Dataset& data, const BatcherConfig& settings, uint64_t number) : dataset(data), config(settings), seed(number) {
    config.validate("batcher");
    for (const int64_t domain : selected_domains()) {
      names.push_back(dataset.manifest().domains[static_cast<size_t>(domain)].name);
      Source source;
      source.domain = domain;
      source.label = static_cast<int64_t>(sources.size());
      const int64_t tokens = dataset.shard(domain, Split::Train).num_tokens();
      source.windows = windows_per_epoch(tokens, config.sequence_length);
      SWITCHYARD_CHECK(source.windows > 0, DataError, "domain '", names.back(), "' of ", dataset.folder().string(), " has ",
                       tokens, " training tokens; sequences of ", config.sequence_length, " need at least ",
                       2 * config.sequence_length, ": use shorter sequences or more text");
      sources.push_back(std::move(source));
    }
    check_weights(config, names);
    take_weights();
    state.drawn_N.assign(sources.size(), 0);
  }

  [[nodiscard]] std::vector<int64_t> selected_domains() const {
    try {
      return dataset.select_domains(config.domains);
    } catch (const UsageError& error) {
      throw ConfigError(join_text("data.domains: ", error.what()));
    }
  }

  // By a power of two, which changes no share, so small that their sum times M is a number.
  void take_weights() {
    if (config.weights.empty()) return;
    double largest = 0.0;
    for (const auto& [name, weight] : config.weights) largest = std::max(largest, weight);
    for (size_t i = 0; i < names.size(); ++i) sources[i].weight = std::ldexp(config.weights.at(names[i]), -std::ilogb(largest));
  }

  // The step's windows, micro-batch by micro-batch. The same for both compositions up to their order.
  std::vector<Window> draw_step() {
    std::vector<Window> windows;
    for (const size_t index : sample_sources(sources, config.micro_batches, seed, state.step)) {
      for (int64_t row = 0; row < config.sequences_per_micro_batch; ++row) {
        windows.push_back(draw_window(sources[index], state.drawn_N[index]++, config.sequence_length, seed));
      }
    }
    if (config.composition == Composition::Mixed) shuffle(windows, Rng(seed, "data_mix", {as_word(state.step)}));
    ++state.step;
    return windows;
  }
};

Batcher::Batcher(const Dataset& dataset, const BatcherConfig& config, uint64_t seed)
    : impl_(std::make_unique<Impl>(dataset, config, seed)) {}
Batcher::~Batcher() = default;
Batcher::Batcher(Batcher&&) noexcept = default;

std::vector<Batch> Batcher::next_step() {
  const BatcherConfig& config = impl_->config;
  const std::vector<Window> windows = impl_->draw_step();
  std::vector<Batch> batches;
  for (int64_t m = 0; m < config.micro_batches; ++m) {
    const auto begin = windows.begin() + m * config.sequences_per_micro_batch;
    batches.push_back(batch_of_windows(impl_->dataset, Split::Train, {begin, begin + config.sequences_per_micro_batch},
                                       config.sequence_length, config.segments, m));
  }
  return batches;
}

const BatcherState& Batcher::state() const { return impl_->state; }

void Batcher::restore(const BatcherState& state) {
  SWITCHYARD_CHECK(state.drawn_N.size() == impl_->sources.size(), StateError, "batcher state of ", state.drawn_N.size(),
                   " domains was given; this batcher has ", impl_->sources.size(),
                   ": resume with the data and config it was saved with");
  const bool negative = std::any_of(state.drawn_N.begin(), state.drawn_N.end(), [](int64_t drawn) { return drawn < 0; });
  SWITCHYARD_CHECK(state.step >= 0 && !negative, StateError,
                   "batcher state with a negative number was given; the checkpoint is damaged");
  impl_->state = state;
}

const std::vector<std::string>& Batcher::domains() const { return impl_->names; }

std::vector<int64_t> Batcher::windows_N() const {
  std::vector<int64_t> windows;
  for (const Source& source : impl_->sources) windows.push_back(source.windows);
  return windows;
}

}  // namespace switchyard
