// B1 to B7: how large the gradient is, and how often it enters.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "switchyard/conform/bench.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

bool cuts_do_not_matter(const Subject& subject) {
  if (!has_scope(subject)) return true;
  const ScopeKind kind = subject.scope.kind;
  return kind != ScopeKind::MicroBatch && kind != ScopeKind::Ranks && kind != ScopeKind::Prefix;
}

// One sequence a micro-batch that repeats the tokens of `pattern`; labels go by those that are not empty.
Rearranged repeated(const BalanceCase& pattern, const std::vector<int64_t>& tokens_M) {
  std::vector<Placed> placed;
  int64_t label = 0;
  for (size_t m = 0; m < tokens_M.size(); ++m) {
    const CaseToken place{.segment = label, .row = label, .micro_batch = static_cast<int64_t>(m), .rank = 0};
    for (int64_t i = 0; i < tokens_M[m]; ++i) placed.push_back({i % pattern.num_tokens(), place});
    label += tokens_M[m] > 0 ? 1 : 0;
  }
  return rearrange(pattern, placed, static_cast<int64_t>(tokens_M.size()), 1);
}

// Adds `size` times a fixed direction to the logits; all copies of a token move together. Mostly towards the experts that are
// used most: along a direction by chance the parts of a slope nearly cancel, and rounding is what remains.
BalanceCase moved_along(const Rearranged& changed, double size) {
  BalanceCase step = changed.step;
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (int64_t token = 0; token < step.num_tokens(); ++token) {
      const int64_t source = changed.source_T[static_cast<size_t>(token)];
      for (int64_t expert = 0; expert < step.num_experts; ++expert) {
        const double direction = 1.0 - 2.0 * static_cast<double>(expert) / static_cast<double>(step.num_experts - 1) +
                                 0.3 * std::cos(static_cast<double>(1 + layer + 3 * source + 7 * expert));
        step.logits_LTE[step.row(layer, token) * static_cast<size_t>(step.num_experts) + static_cast<size_t>(expert)] +=
            size * direction;
      }
    }
  }
  return step;
}

// The logits of the chosen experts raised, so that a small move changes no choice.
BalanceCase with_clear_choices(const BalanceCase& base) {
  BalanceCase step = base;
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (int64_t token = 0; token < step.num_tokens(); ++token) {
      const size_t begin = step.row(layer, token) * static_cast<size_t>(step.num_experts);
      for (const int64_t expert : chosen_K(base, layer, token)) step.logits_LTE[begin + static_cast<size_t>(expert)] += 0.5;
    }
  }
  return step;
}

// How far finite differences move: what they cut off grows with the square of it, what rounding adds falls with it.
double move_size(const Bench& bench) { return 0.25 * std::cbrt(bench.capabilities().tolerance); }

// The slope of the loss that is reported, along that direction.
double slope_of_loss(const Bench& bench, const Rearranged& changed) {
  const double size = move_size(bench);
  const double above = bench.run(moved_along(changed, size)).weighted_loss;
  const double below = bench.run(moved_along(changed, -size)).weighted_loss;
  return (above - below) / (2.0 * size);
}

// The slope that the gradient says.
double slope_of_gradient(const Rearranged& changed, const std::vector<double>& gradient_LTE) {
  const BalanceCase moved = moved_along(changed, 1.0);
  double slope = 0.0;
  for (size_t i = 0; i < moved.logits_LTE.size(); ++i) {
    slope += gradient_LTE[i] * (moved.logits_LTE[i] - changed.step.logits_LTE[i]);
  }
  return slope;
}

// Within a multiple of what is cut off: 1e-5 in double, 6e-3 at the tolerance of fp32.
bool is_once(const Bench& bench, double times) {
  return std::abs(times - 1.0) < 200.0 * std::pow(move_size(bench), 2);  // false for NaN
}

// Odd numbers of sequences and a forward without any: groups of sequences(2) cross forwards, ranks and micro-batches, and the
// last one is short, also in the part that is left for an implementation that knows one rank or one micro-batch only.
Lengths odd_lengths(const Bench& bench) {
  Lengths lengths = {{{5, 2, 3}, {6, 4}}, {{4}, {2, 7}}, {{3}, {}}};
  if (!bench.has(Feature::Padding)) lengths[2][1] = {8, 1};
  lengths.resize(static_cast<size_t>(bench.micro_batches(3)));
  for (std::vector<std::vector<int64_t>>& ranks_R : lengths) ranks_R.resize(static_cast<size_t>(bench.ranks(2)));
  return lengths;
}

void judge_against_textbook(const Bench& bench, const BalanceCase& step, const std::string& what, Judge& judge) {
  const Textbook textbook;
  const Outcome given = bench.run(step);
  const Outcome expected = Bench(textbook, bench.subject()).run(step);
  const std::string where =
      what + ", against the textbook, weighting " + to_string(step.weighting) + ", layers " + to_string(step.layers);
  judge.same(given.value_L, expected.value_L, "value of " + where);
  judge.near(given.weighted_loss, expected.weighted_loss, "weighted loss of " + where);
  judge.same(given.gradient_LTE, expected.gradient_LTE, "gradient of " + where);
}

}  // namespace

Finding check_rank_scale(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const BalanceCase base = bench.step(uneven_lengths(bench.micro_batches(2), 1), 1);
  const Outcome one = bench.run(base);
  for (const int64_t ranks : {1, 2, 4, 8}) {
    const Rearranged copied = copied_to_ranks(base, ranks);
    const Outcome outcome = bench.run(copied.step);
    judge.same(gradient_at_sources(copied, outcome, base), one.gradient_LTE,
               join_text("gradient of ", ranks, " ranks that hold the same tokens, against that of one"));
    judge.same(outcome.value_L, one.value_L, join_text("value of ", ranks, " ranks that hold the same tokens"));
  }
  return judge.finding();
}

Finding check_dense_oracle(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!bench.in_textbook()) return does_not_apply("the textbook has no such method");
  Judge judge = bench.judge();
  for (const Lengths& lengths : {uneven_lengths(bench.micro_batches(3), bench.ranks(3)), odd_lengths(bench)}) {
    BalanceCase step = bench.step(lengths, 2);
    const std::string what = join_text(step.num_micro_batches, " micro-batches on ", step.num_ranks, " ranks");
    for (const GroupWeighting weighting : bench.capabilities().weightings) {
      for (const LayerReduction layers : bench.capabilities().layer_reductions) {
        step.weighting = weighting;
        step.layers = layers;
        judge_against_textbook(bench, step, what, judge);
      }
    }
  }
  return judge.finding();
}

Finding check_denominators(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase pattern = bench.step({{{4}}}, 3);
  const Rearranged even = repeated(pattern, {8, 8, 8});
  const Outcome expected = bench.run(even.step);
  for (const std::vector<int64_t>& tokens_M : {std::vector<int64_t>{12, 4, 8}, {4, 12, 8}, {12, 0, 12}}) {
    if (tokens_M[1] == 0 && !bench.has(Feature::Padding)) continue;
    const std::string where = join_text("micro-batches of ", tokens_M[0], ", ", tokens_M[1], ", ", tokens_M[2],
                                        " tokens, all with the same routing frequencies, against 8, 8, 8");
    const Rearranged uneven = repeated(pattern, tokens_M);
    const Outcome outcome = bench.run(uneven.step);
    judge.same(outcome.value_L, expected.value_L, "value of " + where);
    judge.same(gradient_at_sources(uneven, outcome, pattern), gradient_at_sources(even, expected, pattern),
               "gradient of " + where);
    if (!bench.is_lbl()) continue;
    BalanceCase flat = uneven.step;
    flatten_logits(flat);
    judge.near(bench.run(flat).value_L.at(0), 1.0, "sum of f (value at uniform probabilities), " + where);
  }
  return judge.finding();
}

Finding check_contract(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  const bool splits = bench.splits_segments() && !bench.has_scope(ScopeKind::MicroBatch);
  if (bench.capabilities().contracts.size() < 2 && !splits) {
    return does_not_apply("one contract only, and no sequence is split over ranks");
  }
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(2), bench.ranks(2)), 4);
  const Outcome expected = bench.run(step);
  for (const GradientContract& contract : bench.capabilities().contracts) {
    step.contract = contract;
    const Outcome outcome = bench.run(step);
    judge.same(outcome.gradient_LTE, expected.gradient_LTE,
               "gradient under the contract (" + contract_text(contract) + ") against (" +
                   contract_text(bench.capabilities().contracts.front()) + ")");
    judge.same(outcome.value_L, expected.value_L, "value under the contract (" + contract_text(contract) + ")");
  }
  if (splits) {
    const BalanceCase whole = bench.step(uneven_lengths(bench.micro_batches(2), 1), 5);
    Rearranged split = on_grid(whole, {.context = 2});
    split.step.grid = {};
    judge.same(gradient_at_sources(split, bench.run(split.step), whole), bench.run(whole).gradient_LTE,
               "gradient with each sequence split over 2 ranks, against one rank");
  }
  return judge.finding();
}

Finding check_accumulation(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const BalanceCase base = bench.step(uneven_lengths(1, 1), 6);
  const Outcome one = bench.run(base);
  for (const int64_t copies : {2, 4}) {
    const Rearranged copied = copied_to_micro_batches(base, copies);
    const Outcome outcome = bench.run(copied.step);
    judge.same(gradient_at_sources(copied, outcome, base), one.gradient_LTE,
               join_text("gradient of ", copies, " equal micro-batches against that of one"));
    judge.near(outcome.weighted_loss, one.weighted_loss, join_text("weighted loss of ", copies, " equal micro-batches"));
    judge.same(outcome.value_L, one.value_L, join_text("value of ", copies, " equal micro-batches"));
  }
  if (cuts_do_not_matter(subject)) {
    const BalanceCase many = bench.step(uneven_lengths(4, 1), 7);
    const Rearranged together = in_one_micro_batch(many);
    const Outcome expected = bench.run(many);
    const Outcome outcome = bench.run(together.step);
    judge.same(gradient_at_sources(together, outcome, many), expected.gradient_LTE,
               "gradient of the same tokens in one micro-batch against 4");
    judge.same(outcome.value_L, expected.value_L, "value of the same tokens in one micro-batch against 4");
  }
  return judge.finding();
}

Finding check_coefficient(const Implementation& implementation, const Subject& subject) {
  if (!has_loss(subject)) return does_not_apply(kNoLoss);
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = with_clear_choices(bench.step(uneven_lengths(bench.micro_batches(2), 1), 8));
  const Outcome half = bench.run(step);
  const auto is_zero = [](double entry) { return entry == 0.0; };
  if (std::all_of(half.gradient_LTE.begin(), half.gradient_LTE.end(), is_zero)) judge.fail("the gradient is zero everywhere");
  step.coefficient *= 4.0;
  std::vector<double> fourfold = half.gradient_LTE;
  for (double& entry : fourfold) entry *= 4.0;
  judge.same(bench.run(step).gradient_LTE, fourfold, "gradient at four times the coefficient, against four times the gradient");
  step.coefficient /= 4.0;

  std::vector<int64_t> all(static_cast<size_t>(step.num_tokens()));
  std::iota(all.begin(), all.end(), int64_t{0});
  const double times = slope_of_gradient({step, all}, half.gradient_LTE) / slope_of_loss(bench, {step, all});
  if (!is_once(bench, times)) {
    judge.fail(join_text("the gradient is ", times, " times the finite differences of the loss (counts held fixed)"));
  }
  if (!bench.has(Feature::TaskLoss)) return judge.finding();
  for (size_t i = 0; i < step.logits_LTE.size(); ++i) step.task_LTE.push_back(std::sin(static_cast<double>(i)));
  step.coefficient = 0.0;
  const Outcome zero = bench.run(step);
  step.subject.method = "none";
  const Outcome none = implementation.run(step);
  judge.same_bits(zero.gradient_LTE, none.gradient_LTE, "gradient at coefficient 0 against no balancing at all");
  judge.same_bits({&zero.task_loss, 1}, {&none.task_loss, 1}, "task loss at coefficient 0 against no balancing at all");
  return judge.finding();
}

Finding check_enters_once(const Implementation& implementation, const Subject& subject) {
  if (!has_loss(subject)) return does_not_apply(kNoLoss);
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const BalanceCase base = with_clear_choices(bench.step(uneven_lengths(1, 1), 9));
  for (const int64_t ranks : {1, 2, 4}) {
    Rearranged copied = copied_to_ranks(base, bench.ranks(ranks));
    const double slope = slope_of_loss(bench, copied);
    const double loss = bench.run(copied.step).weighted_loss;
    for (const GradientContract& contract : bench.capabilities().contracts) {
      copied.step.contract = contract;
      const std::string where = join_text("on ", copied.step.num_ranks, " ranks (", contract_text(contract), ")");
      const Outcome outcome = bench.run(copied.step);
      judge.near(outcome.weighted_loss, loss, where + ", weighted loss against the first contract");
      const double times = slope_of_gradient(copied, outcome.gradient_LTE) / slope;
      if (!is_once(bench, times)) judge.fail(join_text(where, " the loss enters ", times, " times"));
    }
  }
  return judge.finding();
}

Finding check_recompute(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(2), bench.ranks(2)), 10);
  const Outcome once = bench.run(step);
  for (const std::vector<int64_t>& runs_L : {std::vector<int64_t>{2, 2}, {1, 2}, {3, 1}}) {
    step.runs_L = runs_L;
    const Outcome outcome = bench.run(step);
    const std::string what = join_text("layer 0 run ", runs_L[0], " times and layer 1 ", runs_L[1], " times, against once");
    judge.same_outcome(outcome, once, what);
    if (outcome.state != once.state) judge.fail(what + ": the state for the next step differs");
  }
  return judge.finding();
}

}  // namespace switchyard::conform
