#include "switchyard/conform/rearrange.hpp"

#include <algorithm>
#include <map>

#include "switchyard/core/rng.hpp"

namespace switchyard::conform {
namespace {

constexpr double kPaddingLogit = 30.0;  // of expert 0: whoever counts padding sees it there
constexpr size_t kPaddingTokens = 3;    // beside each sequence
constexpr int64_t kApart = 1000;        // between the labels of copies

template <typename Values>
void take_row(const Values& from, size_t from_row, size_t width, Values& into) {
  if (from.empty()) return;
  for (size_t i = 0; i < width; ++i) into.push_back(from[from_row * width + i]);
}

template <typename Values, typename Value>
void add_row(const Values& like, size_t width, Value value, Values& into) {
  if (!like.empty()) into.insert(into.end(), width, value);
}

void take_rows(const BalanceCase& base, const std::vector<int64_t>& source_T, BalanceCase& step) {
  const auto num_experts = static_cast<size_t>(base.num_experts);
  const auto num_chosen = static_cast<size_t>(base.num_chosen);
  for (int64_t layer = 0; layer < base.num_layers; ++layer) {
    for (const int64_t source : source_T) {
      if (source == kPadding) {
        step.logits_LTE.push_back(kPaddingLogit);
        step.logits_LTE.insert(step.logits_LTE.end(), num_experts - 1, 0.0);
        for (size_t k = 0; k < num_chosen && !base.choices_LTK.empty(); ++k)
          step.choices_LTK.push_back(static_cast<int64_t>(k));
        add_row(base.dropped_LTK, num_chosen, false, step.dropped_LTK);
        add_row(base.task_LTE, num_experts, 0.0, step.task_LTE);
        continue;
      }
      const size_t row = base.row(layer, source);
      take_row(base.logits_LTE, row, num_experts, step.logits_LTE);
      take_row(base.choices_LTK, row, num_chosen, step.choices_LTK);
      take_row(base.dropped_LTK, row, num_chosen, step.dropped_LTK);
      take_row(base.task_LTE, row, num_experts, step.task_LTE);
    }
  }
}

// All tokens with their places changed by `move`.
template <typename Move>
std::vector<Placed> moved(const BalanceCase& base, const Move& move) {
  std::vector<Placed> placed = places_of(base);
  for (Placed& token : placed) move(token.place);
  return placed;
}

std::vector<Placed> copies_of(const BalanceCase& base, int64_t copies, int64_t CaseToken::*where) {
  std::vector<Placed> placed;
  for (int64_t copy = 0; copy < copies; ++copy) {
    for (Placed token : places_of(base)) {
      if (token.place.valid()) token.place.segment += copy * kApart;
      token.place.row += copy * kApart;
      token.place.*where = copy;
      placed.push_back(token);
    }
  }
  return placed;
}

}  // namespace

BalanceCase make_case(const Lengths& lengths, uint64_t seed, Rows rows, const CaseShape& shape) {
  BalanceCase step;
  step.num_layers = shape.num_layers;
  step.num_experts = shape.num_experts;
  step.num_chosen = shape.num_chosen;
  step.num_micro_batches = static_cast<int64_t>(lengths.size());
  step.num_ranks = lengths.empty() ? 1 : static_cast<int64_t>(lengths.front().size());
  int64_t segments = 0;
  int64_t forwards = 0;
  for (int64_t m = 0; m < step.num_micro_batches; ++m) {
    for (int64_t r = 0; r < step.num_ranks; ++r, ++forwards) {
      int64_t row = forwards * kApart;
      for (const int64_t length : lengths[static_cast<size_t>(m)][static_cast<size_t>(r)]) {
        if (length > 0 && rows == Rows::OnePerSequence) ++row;
        const CaseToken place{.segment = length < 0 ? kPadding : segments++, .row = row, .micro_batch = m, .rank = r};
        step.tokens.insert(step.tokens.end(), static_cast<size_t>(std::abs(length)), place);
      }
    }
  }
  Rng rng(seed, "conform");
  for (int64_t i = 0; i < step.num_layers * step.num_tokens() * step.num_experts; ++i) {
    // A slant makes the experts unequal: a balanced step would hide a wrong scale.
    // Rounded, so that an implementation in fp32 chooses the same experts.
    step.logits_LTE.push_back(static_cast<float>(rng.normal() - 0.4 * static_cast<double>(i % step.num_experts)));
  }
  return step;
}

Lengths uneven_lengths(int64_t num_micro_batches, int64_t num_ranks) {
  const std::vector<std::vector<int64_t>> kSome = {{5, 2}, {3, 6}, {1, 4, 2, 3}, {7, 2}};
  Lengths lengths;
  for (int64_t m = 0; m < num_micro_batches; ++m) {
    lengths.emplace_back();
    for (int64_t r = 0; r < num_ranks; ++r) {
      lengths.back().push_back(kSome[static_cast<size_t>(m * num_ranks + r) % kSome.size()]);
    }
  }
  return lengths;
}

std::vector<Placed> places_of(const BalanceCase& base) {
  std::vector<Placed> placed;
  for (int64_t token = 0; token < base.num_tokens(); ++token) placed.push_back({token, base.token(token)});
  return placed;
}

Rearranged rearrange(const BalanceCase& base, std::vector<Placed> placed, int64_t num_micro_batches, int64_t num_ranks) {
  std::stable_sort(placed.begin(), placed.end(), [](const Placed& a, const Placed& b) {
    return std::pair(a.place.micro_batch, a.place.rank) < std::pair(b.place.micro_batch, b.place.rank);
  });
  Rearranged changed;
  changed.step = base;
  changed.step.num_micro_batches = num_micro_batches;
  changed.step.num_ranks = num_ranks;
  changed.step.tokens.clear();
  changed.step.logits_LTE.clear();
  changed.step.choices_LTK.clear();
  changed.step.dropped_LTK.clear();
  changed.step.task_LTE.clear();
  for (const Placed& token : placed) {
    changed.step.tokens.push_back(token.place);
    changed.source_T.push_back(token.source);
  }
  take_rows(base, changed.source_T, changed.step);
  return changed;
}

Rearranged copied_to_ranks(const BalanceCase& base, int64_t copies) {
  return rearrange(base, copies_of(base, copies, &CaseToken::rank), base.num_micro_batches, copies);
}

Rearranged copied_to_micro_batches(const BalanceCase& base, int64_t copies) {
  return rearrange(base, copies_of(base, copies, &CaseToken::micro_batch), copies, base.num_ranks);
}

Rearranged on_one_rank(const BalanceCase& base) {
  return rearrange(base, moved(base, [](CaseToken& token) { token.rank = 0; }), base.num_micro_batches, 1);
}

Rearranged ranks_as_micro_batches(const BalanceCase& base) {
  const auto move = [&base](CaseToken& token) {
    token.micro_batch = token.micro_batch * base.num_ranks + token.rank;
    token.rank = 0;
  };
  return rearrange(base, moved(base, move), base.num_micro_batches * base.num_ranks, 1);
}

Rearranged in_one_micro_batch(const BalanceCase& base) {
  return rearrange(base, moved(base, [](CaseToken& token) { token.micro_batch = 0; }), 1, base.num_ranks);
}

Rearranged with_micro_batches_reversed(const BalanceCase& base) {
  const auto move = [&base](CaseToken& token) { token.micro_batch = base.num_micro_batches - 1 - token.micro_batch; };
  return rearrange(base, moved(base, move), base.num_micro_batches, base.num_ranks);
}

Rearranged with_ranks_reversed(const BalanceCase& base) {
  const auto move = [&base](CaseToken& token) { token.rank = base.num_ranks - 1 - token.rank; };
  return rearrange(base, moved(base, move), base.num_micro_batches, base.num_ranks);
}

Rearranged with_padding(const BalanceCase& base, PaddingPlace where) {
  const std::vector<Placed> tokens = places_of(base);
  std::vector<Placed> placed;
  const auto add_padding = [&placed](CaseToken place) {
    place.segment = kPadding;
    placed.insert(placed.end(), kPaddingTokens, {kPadding, place});
  };
  for (size_t i = 0; i < tokens.size(); ++i) {
    const CaseToken& place = tokens[i].place;
    const bool is_first = i == 0 || tokens[i - 1].place.segment != place.segment;
    const bool is_last = i + 1 == tokens.size() || tokens[i + 1].place.segment != place.segment;
    if (is_first && where == PaddingPlace::Before) add_padding(place);
    placed.push_back(tokens[i]);
    if (is_last && where == PaddingPlace::Behind) add_padding(place);
  }
  return rearrange(base, placed, base.num_micro_batches, base.num_ranks);
}

Rearranged with_empty_micro_batch(const BalanceCase& base) {
  std::vector<Placed> placed = places_of(base);
  const int64_t extra = base.num_micro_batches;
  const CaseToken nothing{.segment = kPadding, .row = -kApart, .micro_batch = extra, .rank = 0};
  placed.insert(placed.end(), kPaddingTokens, {kPadding, nothing});
  return rearrange(base, placed, extra + 1, base.num_ranks);
}

Rearranged on_grid(const BalanceCase& base, const DeviceGrid& grid) {
  const int64_t parts = num_shards(grid) / grid.data;  // of each sequence
  std::map<int64_t, int64_t> length_of;
  std::map<int64_t, int64_t> ordinal_of;
  std::map<int64_t, int64_t> seen_of;
  std::vector<int64_t> met_M(static_cast<size_t>(base.num_micro_batches), 0);
  for (const CaseToken& token : base.tokens) {
    ++length_of[token.segment];
    if (!ordinal_of.contains(token.segment)) ordinal_of[token.segment] = met_M[static_cast<size_t>(token.micro_batch)]++;
  }
  const auto move = [&](CaseToken& token) {
    // Contiguous blocks of sequences, so that their order in the step stays.
    const int64_t data_rank = ordinal_of[token.segment] * grid.data / met_M[static_cast<size_t>(token.micro_batch)];
    const int64_t part = seen_of[token.segment]++ * parts / length_of[token.segment];
    token.rank = data_rank * parts + part;
  };
  Rearranged changed = rearrange(base, moved(base, move), base.num_micro_batches, num_shards(grid));
  changed.step.grid = grid;
  return changed;
}

std::vector<double> gradient_at_sources(const Rearranged& changed, const Outcome& outcome, const BalanceCase& base) {
  const auto num_experts = static_cast<size_t>(base.num_experts);
  std::vector<double> sums_LTE(base.logits_LTE.size(), 0.0);
  for (int64_t layer = 0; layer < base.num_layers; ++layer) {
    for (int64_t token = 0; token < changed.step.num_tokens(); ++token) {
      const int64_t source = changed.source_T[static_cast<size_t>(token)];
      if (source == kPadding) continue;
      const double* from_E = outcome.gradient_LTE.data() + changed.step.row(layer, token) * num_experts;
      double* into_E = sums_LTE.data() + base.row(layer, source) * num_experts;
      for (size_t expert = 0; expert < num_experts; ++expert) into_E[expert] += from_E[expert];
    }
  }
  return sums_LTE;
}

}  // namespace switchyard::conform
