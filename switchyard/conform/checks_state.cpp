// B21 to B28: what lasts, what evaluation may touch, what metrics say, and exact integers.

#include <algorithm>
#include <cmath>
#include <exception>
#include <string>
#include <utility>

#include "switchyard/conform/bench.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

// Two tokens' worth of routing that is all to expert 0 or all to expert 1, ten tokens each.
BalanceCase opposite_halves(int64_t num_micro_batches, int64_t num_ranks) {
  Lengths lengths(static_cast<size_t>(num_micro_batches), std::vector<std::vector<int64_t>>(static_cast<size_t>(num_ranks)));
  lengths.front().front() = {10};
  lengths.back().back() = {10};
  BalanceCase step = make_case(lengths, 1, Rows::OnePerSequence, {1, 2, 1});
  for (int64_t token = 0; token < step.num_tokens(); ++token) {
    step.logits_LTE[static_cast<size_t>(2 * token)] = token < 10 ? 1.0 : 0.0;
    step.logits_LTE[static_cast<size_t>(2 * token + 1)] = token < 10 ? 0.0 : 1.0;
  }
  return step;
}

std::vector<double> last_micro_batch(const BalanceCase& step, const std::vector<double>& gradient_LTE) {
  std::vector<double> rows;
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    for (int64_t token = 0; token < step.num_tokens(); ++token) {
      if (step.token(token).micro_batch + 1 != step.num_micro_batches) continue;
      const auto begin = gradient_LTE.begin() + static_cast<std::ptrdiff_t>(step.row(layer, token)) * step.num_experts;
      rows.insert(rows.end(), begin, begin + step.num_experts);
    }
  }
  return rows;
}

void judge_prefix(const Bench& bench, const BalanceCase& step, const Outcome& outcome, Judge& judge) {
  const Textbook textbook;
  BalanceCase exact = step;
  exact.subject.scope = {.kind = ScopeKind::OptimizerBatch};
  const Outcome expected = textbook.run(exact);
  std::vector<double> exact_gradient = last_micro_batch(step, expected.gradient_LTE);
  if (step.weighting == GroupWeighting::Mean) {  // 1 / M in place of its share of the tokens
    int64_t tokens = 0;
    for (int64_t rank = 0; rank < step.num_ranks; ++rank) tokens += valid_tokens(step, step.num_micro_batches - 1, rank);
    const auto even = static_cast<double>(step.num_valid()) / static_cast<double>(step.num_micro_batches);
    for (double& entry : exact_gradient) entry *= even / static_cast<double>(tokens);
  }
  judge.same(last_micro_batch(step, outcome.gradient_LTE), exact_gradient,
             "gradient of the last micro-batch, which has seen the whole step, against the exact one");
  Judge differs = bench.judge();
  const Rearranged reversed = with_micro_batches_reversed(step);
  differs.same(gradient_at_sources(reversed, bench.run(reversed.step), step), outcome.gradient_LTE, "");
  if (differs.holds()) judge.fail("the order of micro-batches changes nothing, so this is not a prefix");
}

// The same step three times.
void judge_repeated_step(const Bench& bench, Judge& judge) {
  const BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(3), 1), 23);
  const std::vector<BalanceCase> three = {step, step, step};
  const std::vector<Outcome> outcomes = bench.implementation().run_steps(three, {});
  judge.same_counts(outcomes.at(2).step_counts_LE, outcomes.at(0).step_counts_LE, "counts of the same step a third time");
  judge.same(outcomes.at(2).gradient_LTE, outcomes.at(1).gradient_LTE, "gradient of the same step a third time");
  if (!uses_earlier_steps(bench.subject())) {
    judge.same(outcomes.at(1).gradient_LTE, outcomes.at(0).gradient_LTE, "gradient of the same step a second time");
  }
  const std::vector<std::vector<int64_t>>& parts = outcomes.at(0).micro_counts_MLE;
  if (static_cast<int64_t>(parts.size()) != step.num_micro_batches) {
    judge.fail(join_text("counts of ", parts.size(), " micro-batches after a step of ", step.num_micro_batches));
  }
  std::vector<int64_t> sums(outcomes.at(0).step_counts_LE.size(), 0);
  for (const std::vector<int64_t>& part : parts) {
    for (size_t i = 0; i < std::min(part.size(), sums.size()); ++i) sums[i] += part[i];
  }
  judge.same_counts(outcomes.at(0).step_counts_LE, sums, "counts of the step against the sum over its micro-batches");
}

std::vector<BalanceCase> different_steps(const Bench& bench) {
  const Lengths lengths = uneven_lengths(5, 1);
  std::vector<BalanceCase> steps;
  for (int64_t i = 0; i < 4; ++i) {
    const auto first = lengths.begin() + i;
    steps.push_back(bench.step(Lengths(first, first + bench.micro_batches(2)), 40 + static_cast<uint64_t>(i)));
  }
  return steps;
}

void judge_like(const Outcome& given, const Outcome& expected, const std::string& what, Judge& judge) {
  judge.same_counts(given.step_counts_LE, expected.step_counts_LE, "counts of " + what);
  judge.same(given.value_L, expected.value_L, "value of " + what);
  judge.near(given.weighted_loss, expected.weighted_loss, "weighted loss of " + what);
  judge.same(given.gradient_LTE, expected.gradient_LTE, "gradient of " + what);
}

// Four different steps in a row: each as behind no more steps than its scope reads, and as in the textbook. The same step again
// and again could not tell a mean over steps from the last one.
void judge_different_steps(const Bench& bench, Judge& judge) {
  const std::vector<BalanceCase> steps = different_steps(bench);
  const std::vector<Outcome> outcomes = bench.implementation().run_steps(steps, {});
  const size_t read = bench.has_scope(ScopeKind::PreviousStep) ? 1 : 0;
  const bool reads_all = bench.has_scope(ScopeKind::Ema) || !has_loss(bench.subject());
  for (size_t i = read; i < steps.size() && !reads_all; ++i) {
    const std::span<const BalanceCase> needed = std::span(steps).subspan(i - read, read + 1);
    judge_like(outcomes.at(i), bench.implementation().run_steps(needed, {}).back(),
               join_text("step ", i, " of four different ones, against the same behind ", read, " steps"), judge);
  }
  if (!bench.in_textbook()) return;
  const std::vector<Outcome> expected = Textbook().run_steps(steps, {});
  for (size_t i = 0; i < steps.size(); ++i) {
    judge_like(outcomes.at(i), expected.at(i), join_text("step ", i, " of four different ones, against the textbook"), judge);
  }
}

// Slots of the experts 3, 1, 2, 2, and in the second layer 1, 3, 2, 2. The scores say the same, for rules that read them.
BalanceCase uneven_loads() {
  BalanceCase step;
  step.tokens.assign(4, {});
  step.logits_LTE = {.9,  -.3, .4, 0, .6,  -.3, 0, .4, .3, .5, 0, -.3, 0,   -.3, .4, .5,
                     -.3, .9,  .4, 0, -.3, .6,  0, .4, .5, .3, 0, -.3, -.3, 0,   .4, .5};
  return step;
}

// The offsets of the next step work against the load of this one.
Finding judge_offsets(const Bench& bench) {
  Judge judge = bench.judge();
  const BalanceCase step = bench.of_subject(uneven_loads());
  const Outcome outcome = bench.run(step);
  judge.same_counts(outcome.step_counts_LE, std::vector<int64_t>{3, 1, 2, 2, 1, 3, 2, 2}, "counts");
  if (outcome.value_L.size() != outcome.step_counts_LE.size()) {
    judge.fail(
        join_text(outcome.value_L.size(), " offsets of the experts of all layers, expected ", outcome.step_counts_LE.size()));
    return judge.finding();
  }
  for (int64_t layer = 0; layer < step.num_layers; ++layer) {
    const double* offsets_E = outcome.value_L.data() + layer * step.num_experts;
    const double most_loaded = offsets_E[layer];
    const double least_loaded = offsets_E[1 - layer];
    for (const double other : {offsets_E[2], offsets_E[3]}) {
      if (most_loaded < other && other < least_loaded) continue;
      judge.fail(join_text("layer ", layer, ": offset ", most_loaded, " of the expert with 3 slots, ", other,
                           " of one with 2, ", least_loaded, " of that with 1; expected the lowest for the most loaded"));
    }
  }
  return judge.finding();
}

}  // namespace

Finding check_buffer(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  judge_repeated_step(bench, judge);
  judge_different_steps(bench, judge);
  if (!bench.is_lbl() || (bench.kind() != ScopeKind::Prefix && bench.kind() != ScopeKind::OptimizerBatch))
    return judge.finding();
  BalanceCase single = bench.step(uneven_lengths(1, bench.ranks(2)), 24);
  const Outcome outcome = bench.run(single);
  single.subject.scope = {.kind = ScopeKind::Ranks};
  const Textbook textbook;
  judge.same(outcome.gradient_LTE, textbook.run(single).gradient_LTE,
             "gradient with one micro-batch a step, against the synchronised micro-batch");
  return judge.finding();
}

Finding check_saved_state(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!keeps_state(subject)) return does_not_apply("nothing lasts from step to step under this scope");
  Judge judge = bench.judge();
  std::vector<BalanceCase> steps;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    steps.push_back(bench.step(uneven_lengths(bench.micro_batches(2), 1), 25 + seed));
  }
  const std::vector<Outcome> through = implementation.run_steps(steps, {});
  for (size_t cut = 1; cut < steps.size(); ++cut) {
    const std::span<const BalanceCase> rest = std::span(steps).subspan(cut);
    const std::vector<Outcome> resumed = implementation.run_steps(rest, through[cut - 1].state);
    for (size_t i = 0; i < resumed.size(); ++i) {
      const std::string what = join_text("step ", cut + i, " with the state saved and restored before step ", cut);
      judge.same_outcome(resumed[i], through[cut + i], what);
      if (resumed[i].state != through[cut + i].state) judge.fail(what + ": the state differs");
    }
  }
  if (!bench.has(Feature::MicroBatches)) return judge.finding();
  std::vector<BalanceCase> together;
  for (const BalanceCase& step : steps) together.push_back(in_one_micro_batch(step).step);
  const Outcome expected = implementation.run_steps(together, {}).back();
  judge.same(through.back().value_L, expected.value_L,
             "value of step 3 after steps of 2 micro-batches, against the same steps in one: the state moves once per step");
  return judge.finding();
}

Finding check_saved_progress(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(4, bench.ranks(2)), 32);
  const Outcome through = bench.run(step);
  step.interruption = Interruption::AfterEachMicroBatch;
  const Outcome stopped = bench.run(step);
  judge.same_outcome(stopped, through, "a step that is saved and resumed after each micro-batch, against one that is not");
  if (stopped.state != through.state) judge.fail("saved and resumed after each micro-batch: the state for the next step differs");
  return judge.finding();
}

Finding check_evaluation(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(bench.micro_batches(2), 1), 29);
  if (bench.has(Feature::TaskLoss)) {
    for (size_t i = 0; i < step.logits_LTE.size(); ++i) step.task_LTE.push_back(std::sin(static_cast<double>(i)));
  }
  const Outcome plain = bench.run(step);
  step.evaluation = Evaluation::AfterEachMicroBatch;
  const Outcome evaluated = bench.run(step);
  judge.same_outcome(evaluated, plain, "evaluation after each micro-batch, against none");
  if (evaluated.state != plain.state) judge.fail("evaluation after each micro-batch: the state for the next step differs");
  if (!bench.has(Feature::TaskLoss)) return judge.finding();
  step.evaluation = Evaluation::None;
  step.coefficient *= 100.0;
  const Outcome strong = bench.run(step);
  judge.same_bits({&strong.task_loss, 1}, {&plain.task_loss, 1},
                  "task loss at 100 times the coefficient (the reported loss must not hold the balancing loss)");
  return judge.finding();
}

Finding check_never_silent(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (!has_loss(subject)) return judge_offsets(bench);
  if (!bench.has(Feature::BadWiring)) return has_no_notion(implementation, Feature::BadWiring);
  Judge judge = bench.judge();
  BalanceCase step = bench.step(uneven_lengths(1, 1), 30);
  const auto is_zero = [](double entry) { return entry == 0.0; };
  const Outcome whole = bench.run(step);
  if (std::all_of(whole.gradient_LTE.begin(), whole.gradient_LTE.end(), is_zero)) {
    judge.fail("switched on, and the gradient is zero everywhere");
  }
  std::string message;
  for (const auto& [wiring, what] : {std::pair{Wiring::RouterPassesNothing, "the router passes no scores"},
                                     {Wiring::RouterDropsResult, "the router goes on with the scores it had before"}}) {
    step.wiring = wiring;
    try {
      static_cast<void>(bench.run(step));
      judge.fail(join_text(what, ", so the loss cannot act, and nothing is said"));
    } catch (const std::exception& error) {
      message += join_text(message.empty() ? "errors: " : "; ", error.what());
    }
  }
  Finding finding = judge.finding();
  if (judge.holds()) finding.message = message;
  return finding;
}

Finding check_multi_token_prediction(const Implementation&, const Subject&) {
  return does_not_apply("there is no multi-token prediction here");
}

Finding check_metric_scope(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  std::vector<BalanceCase> steps;
  if (bench.has(Feature::MicroBatches)) steps.push_back(opposite_halves(2, 1));
  if (bench.has(Feature::Ranks)) steps.push_back(opposite_halves(1, 2));
  if (steps.empty()) return does_not_apply("there is one micro-batch and one rank: only one scope for a metric");
  for (const BalanceCase& plain : steps) {
    const BalanceCase step = bench.of_subject(plain);
    const Outcome outcome = bench.run(step);
    const std::string what = step.num_ranks > 1 ? "two ranks" : "two micro-batches";
    judge.same_counts(outcome.step_counts_LE, std::vector<int64_t>{10, 10}, "counts of " + what + " that use an expert each");
    judge.near(max_vio(outcome.step_counts_LE), 0.0, "MaxVio of the step, " + what + " that use an expert each");
    if (step.num_ranks == 1) {
      judge.near(max_vio(outcome.micro_counts_MLE.at(0)), 1.0, "MaxVio of the first micro-batch alone");
    }
  }
  return judge.finding();
}

Finding check_order(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const int64_t ranks = bench.ranks(2);
  const BalanceCase step = bench.step(uneven_lengths(3, ranks), 31);
  const Outcome outcome = bench.run(step);
  std::vector<std::pair<Rearranged, std::string>> orders;
  if (ranks > 1) orders.emplace_back(with_ranks_reversed(step), "ranks in reverse order");
  if (!bench.has_scope(ScopeKind::Prefix)) {
    orders.emplace_back(with_micro_batches_reversed(step), "micro-batches in reverse order");
  }
  for (const auto& [changed, what] : orders) {
    const Outcome other = bench.run(changed.step);
    judge.near(other.weighted_loss, outcome.weighted_loss, "weighted loss, " + what);
    judge.same(other.value_L, outcome.value_L, "value, " + what);
    judge.same(gradient_at_sources(changed, other, step), outcome.gradient_LTE, "gradient, " + what);
  }
  if (bench.is_lbl() && bench.has_scope(ScopeKind::Prefix)) judge_prefix(bench, step, outcome, judge);
  return judge.finding();
}

Finding check_exact_counts(const Implementation& implementation, const Subject& subject) {
  Judge judge = Bench(implementation, subject).judge();
  for (const int exponent : {24, 31, 53, 60}) {
    const int64_t many = int64_t{1} << exponent;
    const std::vector<int64_t> sums_E = implementation.accumulate({{many, 3}, {1, many}});
    judge.same_counts(sums_E, std::vector<int64_t>{many + 1, many + 3}, join_text("2^", exponent, " selections and one more"));
  }
  return judge.finding();
}

}  // namespace switchyard::conform
