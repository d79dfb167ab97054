// B8 to B16: which tokens and choices are counted, and what the value says.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "switchyard/conform/bench.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

constexpr const char* kNotLbl = "it speaks of the value of the load-balancing loss";

// Choices that are not those of the largest logits.
void choose_otherwise(BalanceCase& step) {
  step.choices_LTK.clear();
  for (int64_t row = 0; row < step.num_layers * step.num_tokens(); ++row) {
    for (int64_t k = 0; k < step.num_chosen; ++k) step.choices_LTK.push_back((row % 3 + k + (row % 2)) % step.num_experts);
  }
}

std::vector<int64_t> tally_LE(const BalanceCase& step) {
  std::vector<int64_t> counts_LE(static_cast<size_t>(step.num_layers * step.num_experts), 0);
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (int64_t token = 0; token < step.num_tokens(); ++token) {
      if (!step.token(token).valid()) continue;
      for (const int64_t expert : chosen_K(step, layer, token))
        ++counts_LE[static_cast<size_t>(layer * step.num_experts + expert)];
    }
  }
  return counts_LE;
}

// One layer, one sequence; each token given by its probabilities.
BalanceCase of_probs(const std::vector<std::vector<double>>& probs_TE) {
  BalanceCase step;
  step.num_layers = 1;
  step.num_experts = static_cast<int64_t>(probs_TE.front().size());
  step.num_chosen = 1;
  step.tokens.assign(probs_TE.size(), {});
  for (const std::vector<double>& probs_E : probs_TE) {
    for (const double prob : probs_E) step.logits_LTE.push_back(std::log(prob));
  }
  return step;
}

// The tokens of some sequences alone.
Rearranged only(const BalanceCase& base, int64_t first_segment, int64_t end_segment) {
  std::vector<Placed> placed;
  for (const Placed& token : places_of(base)) {
    if (token.place.segment >= first_segment && token.place.segment < end_segment) placed.push_back(token);
  }
  return rearrange(base, placed, base.num_micro_batches, base.num_ranks);
}

// The step's gradient and value against parts that are run alone, weighed as the step's weighting says.
void judge_parts(const Bench& bench, const BalanceCase& step, int64_t segments_each, const std::string& what, Judge& judge) {
  int64_t segments = 0;
  for (const CaseToken& token : step.tokens) segments = std::max(segments, token.segment + 1);
  std::vector<double> gradient(step.logits_LTE.size(), 0.0);
  std::vector<double> value_L(static_cast<size_t>(step.num_layers), 0.0);
  for (int64_t first = 0; first < segments; first += segments_each) {
    const Rearranged part = only(step, first, first + segments_each);
    const double weight = step.weighting == GroupWeighting::Mean
                              ? static_cast<double>(segments_each) / static_cast<double>(segments)
                              : static_cast<double>(part.step.num_valid()) / static_cast<double>(step.num_valid());
    const Outcome outcome = bench.run(part.step);
    const std::vector<double> own = gradient_at_sources(part, outcome, step);
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] += weight * own[i];
    for (size_t layer = 0; layer < value_L.size(); ++layer) value_L[layer] += weight * outcome.value_L.at(layer);
  }
  const Outcome whole = bench.run(step);
  judge.same(whole.value_L, value_L, "value of " + what);
  judge.same(whole.gradient_LTE, gradient, "gradient of " + what);
}

struct Padded {
  Rearranged changed;
  std::string what;
};

std::vector<Padded> padded_variants(const Bench& bench, const BalanceCase& base) {
  std::vector<Padded> variants = {
      {with_padding(base, PaddingPlace::Behind), "3 tokens of padding behind each sequence"},
      {with_padding(base, PaddingPlace::Before), "3 tokens of padding before each sequence"},
  };
  if (bench.has(Feature::MicroBatches)) variants.push_back({with_empty_micro_batch(base), "a micro-batch of padding"});
  if (bench.has(Feature::Ranks)) {
    variants.push_back({rearrange(base, places_of(base), base.num_micro_batches, 2), "a second rank without tokens"});
  }
  return variants;
}

void judge_padding_only(const Bench& bench, const BalanceCase& base, const std::string& told, Judge& judge) {
  const std::vector<Placed> padding(4, {kPadding, {.segment = kPadding, .row = 0, .micro_batch = 0, .rank = 0}});
  const Outcome nothing = bench.run(rearrange(base, padding, 1, 1).step);
  const std::string what = "a step of padding only" + told;
  judge.finite(nothing, what);
  judge.near(nothing.weighted_loss, 0.0, "weighted loss of " + what);
  judge.same(nothing.gradient_LTE, std::vector<double>(nothing.gradient_LTE.size(), 0.0), "gradient of " + what);
}

}  // namespace

Finding check_used_choices(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(2), 1), 11);
  choose_otherwise(step);
  const Outcome outcome = bench.run_twice(step);
  judge.same_counts(outcome.step_counts_LE, tally_LE(step), "counts where the router did not take the largest scores");
  if (!bench.in_textbook()) return judge.finding();
  const Textbook textbook;
  const Outcome expected = Bench(textbook, subject).run_twice(step);
  judge.same(outcome.value_L, expected.value_L, "value where the router did not take the largest scores");
  judge.same(outcome.gradient_LTE, expected.gradient_LTE, "gradient where the router did not take the largest scores");
  return judge.finding();
}

Finding check_padding(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase base = bench.step(uneven_lengths(bench.micro_batches(2), 1), 12);
  std::vector<Padded> variants = padded_variants(bench, base);
  for (const GradientContract& contract : bench.capabilities().contracts) {
    for (const GroupWeighting weighting : bench.capabilities().weightings) {
      base.contract = contract;
      base.weighting = weighting;
      const std::string told = join_text(" (", contract_text(contract), ", weighting ", to_string(weighting), ")");
      judge_padding_only(bench, base, told, judge);
      const Outcome plain = bench.run(base);
      for (auto& [changed, name] : variants) {
        changed.step.contract = contract;
        changed.step.weighting = weighting;
        const std::string what = name + told;
        const Outcome padded = bench.run(changed.step);
        judge.finite(padded, what);
        judge.same_counts(padded.step_counts_LE, plain.step_counts_LE, "counts with " + what);
        judge.same(padded.value_L, plain.value_L, "value with " + what);
        judge.same(gradient_at_sources(changed, padded, base), plain.gradient_LTE, "gradient with " + what);
      }
    }
  }
  return judge.finding();
}

Finding check_packing(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const Lengths lengths = {{{5, 2, 4, 3}}};
  const BalanceCase packed = bench.step(lengths, 13, Rows::OnePerForward);
  const BalanceCase padded = bench.step(lengths, 13, Rows::OnePerSequence);
  const Outcome expected = bench.run(padded);
  const Outcome outcome = bench.run(packed);
  judge.same(outcome.value_L, expected.value_L, "value of 4 documents in one row against a row each");
  judge.same(outcome.gradient_LTE, expected.gradient_LTE, "gradient of 4 documents in one row against a row each");
  if (!bench.is_lbl() || bench.kind() != ScopeKind::Sequence) return judge.finding();
  judge_parts(bench, packed, 1, "4 documents in one row against a loop over documents", judge);
  if (bench.splits_segments()) {
    Rearranged split = on_grid(packed, {.context = 2});
    split.step.grid = {};
    judge.same(gradient_at_sources(split, bench.run(split.step), packed), expected.gradient_LTE,
               "gradient of 4 documents that each cross from rank 0 to rank 1");
  }
  return judge.finding();
}

Finding check_own_length(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!bench.is_lbl() || (bench.kind() != ScopeKind::Sequence && bench.kind() != ScopeKind::Sequences)) {
    return does_not_apply("the scope does not count sequences by themselves");
  }
  Judge judge = bench.judge();
  const int64_t each = bench.kind() == ScopeKind::Sequences ? subject.scope.num_sequences : 1;
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < 3 * each; ++i) lengths.push_back(std::vector<int64_t>{7, 2, 4, 1, 9, 3}[static_cast<size_t>(i % 6)]);
  BalanceCase step = bench.step({{lengths}}, 14);
  for (const GroupWeighting weighting : bench.capabilities().weightings) {
    step.weighting = weighting;
    const std::string what = "sequences of unequal lengths against each by itself, weighting " + to_string(weighting);
    judge_parts(bench, step, each, what, judge);
  }
  return judge.finding();
}

Finding check_capacity(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(2), 1), 15);
  choose_otherwise(step);
  const Outcome whole = bench.run_twice(step);
  for (size_t slot = 0; slot < step.choices_LTK.size(); ++slot) step.dropped_LTK.push_back(slot % 3 == 0);
  judge.same_outcome(bench.run_twice(step), whole, "a third of the slots dropped over capacity, against none");
  return judge.finding();
}

Finding check_every_choice(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!bench.is_lbl()) return does_not_apply(kNotLbl);
  Judge judge = bench.judge();
  constexpr int64_t kExperts = 4;
  for (int64_t num_chosen = 1; num_chosen <= kExperts; ++num_chosen) {
    BalanceCase step = bench.of_subject(make_case({{{8}}}, 16, Rows::OnePerSequence, {1, kExperts, num_chosen}));
    flatten_logits(step);
    const Outcome outcome = bench.run_twice(step);
    const auto total = std::accumulate(outcome.step_counts_LE.begin(), outcome.step_counts_LE.end(), int64_t{0});
    judge.same_counts({&total, 1}, std::vector<int64_t>{num_chosen * step.num_tokens()},
                      join_text("number of choices counted for 8 tokens at K = ", num_chosen));
    judge.near(outcome.value_L.at(0), 1.0, join_text("value at uniform probabilities and K = ", num_chosen));
  }
  return judge.finding();
}

Finding check_layers_apart(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!bench.is_lbl()) return does_not_apply(kNotLbl);
  Judge judge = bench.judge();
  BalanceCase step = of_probs({{.99, .01}, {.99, .01}, {.01, .99}, {.01, .99}});  // two tokens in each of two layers
  step.num_layers = 2;
  step.tokens.resize(2);
  step = bench.of_subject(step);
  const Outcome outcome = bench.run_twice(step);
  judge.near(outcome.weighted_loss / (layer_coefficient(step) * static_cast<double>(step.num_layers)), 1.98,
             "two layers that collapse onto different experts (pooled they look balanced, 1)");
  return judge.finding();
}

Finding check_normalised_scores(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (subject.method == "z_loss") return does_not_apply("the z-loss acts on the shift itself");
  Judge judge = bench.judge();
  BalanceCase base = bench.step(uneven_lengths(1, 1), 17);
  for (double& logit : base.logits_LTE) logit = std::round(1024.0 * logit) / 1024.0;  // a shift rounds nothing, in fp32 neither
  const Outcome expected = bench.run(base);
  for (const double shift : {50.0, -50.0, 600.0, -600.0}) {
    BalanceCase shifted = base;
    for (double& logit : shifted.logits_LTE) logit += shift;
    const Outcome outcome = bench.run(shifted);
    judge.finite(outcome, join_text("logits shifted by ", shift));
    judge.same(outcome.gradient_LTE, expected.gradient_LTE, join_text("gradient with all logits shifted by ", shift));
    judge.same(outcome.value_L, expected.value_L, join_text("value with all logits shifted by ", shift));
    if (!bench.is_lbl()) continue;
    BalanceCase flat = base;
    flatten_logits(flat);
    for (double& logit : flat.logits_LTE) logit += shift;
    judge.near(bench.run(flat).value_L.at(0), 1.0,
               join_text("value at equal scores of logit ", shift, " (below 1: normalised scores do not sum to 1)"));
  }
  return judge.finding();
}

Finding check_no_certificate(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!bench.is_lbl()) return does_not_apply(kNotLbl);
  Judge judge = bench.judge();
  std::vector<std::vector<double>> below_one(6, {.51, .49});
  below_one.insert(below_one.end(), 4, {.01, .99});  // f = (.6, .4), P = (.31, .69)
  const Outcome low = bench.run_twice(bench.of_subject(of_probs(below_one)));
  judge.near(low.value_L.at(0), 0.924, "value at f = (.6, .4), P = (.31, .69): the loss is not bounded below by 1");
  judge.near(max_vio(low.step_counts_LE), 0.2, "MaxVio of its counts");
  // All logits 0, but that of expert 0 by as little as the value may be off.
  BalanceCase collapsed = bench.of_subject(of_probs(std::vector<std::vector<double>>(8, std::vector<double>(4, 1.0))));
  for (int64_t token = 0; token < 8; ++token) {
    collapsed.logits_LTE[static_cast<size_t>(token * 4)] = 1e-3 * bench.capabilities().tolerance;
  }
  const Outcome flat = bench.run_twice(collapsed);
  judge.near(flat.value_L.at(0), 1.0, "value where every token goes to expert 0 at uniform probabilities");
  judge.near(max_vio(flat.step_counts_LE), 3.0, "MaxVio of its counts");
  return judge.finding();
}

}  // namespace switchyard::conform
