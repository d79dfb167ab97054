#include "switchyard/conform/bench.hpp"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <numeric>
#include <sstream>

#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard::conform {
namespace {

std::string short_number(double number) {
  std::ostringstream out;
  out << std::setprecision(6) << number;
  return out.str();
}

double largest_of(std::span<const double> values) {
  double largest = 0.0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

// By what `given` is a multiple of `expected`, in the sense of least squares.
double scale_of(std::span<const double> given, std::span<const double> expected) {
  const double square = std::inner_product(expected.begin(), expected.end(), expected.begin(), 0.0);
  return square == 0.0 ? 0.0 : std::inner_product(given.begin(), given.end(), expected.begin(), 0.0) / square;
}

std::string counts_text(std::span<const int64_t> counts) {
  const auto first = counts.subspan(0, std::min<size_t>(counts.size(), 8));
  return joined(first, " ", [](int64_t count) { return std::to_string(count); });
}

std::string averaging_text(Averaging averaging) {
  if (averaging == Averaging::Sum) return "sum";
  return averaging == Averaging::Mean ? "mean" : "by tokens";
}

}  // namespace

void Judge::fail(const std::string& message) {
  if (message_.empty()) message_ = message;
}

void Judge::near(double given, double expected, const std::string& what) {
  if (std::abs(given - expected) <= tolerance_ * std::max(1.0, std::abs(expected))) return;  // false for NaN
  fail(join_text(what, ": ", short_number(given), ", expected ", short_number(expected)));
}

void Judge::same(std::span<const double> given, std::span<const double> expected, const std::string& what) {
  if (given.size() != expected.size()) {
    fail(join_text(what, ": ", given.size(), " numbers, expected ", expected.size()));
    return;
  }
  double difference = 0.0;
  for (size_t i = 0; i < given.size(); ++i) {
    const double here = std::abs(given[i] - expected[i]);
    difference = std::isnan(here) ? here : std::max(difference, here);
    if (std::isnan(here)) break;
  }
  const double largest = largest_of(expected);
  if (difference <= tolerance_ * std::max(largest, 1e-2)) return;
  fail(join_text(what, ": largest difference ", short_number(difference), " where the largest entry is ", short_number(largest),
                 "; the whole is ", short_number(scale_of(given, expected)), " times what it should be"));
}

void Judge::same_bits(std::span<const double> given, std::span<const double> expected, const std::string& what) {
  if (std::equal(given.begin(), given.end(), expected.begin(), expected.end())) return;
  same(given, expected, what);
  fail(join_text(what, ": equal within rounding, but not bit for bit"));
}

void Judge::same_counts(std::span<const int64_t> given, std::span<const int64_t> expected, const std::string& what) {
  if (std::equal(given.begin(), given.end(), expected.begin(), expected.end())) return;
  fail(join_text(what, ": ", counts_text(given), ", expected ", counts_text(expected)));
}

void Judge::finite(const Outcome& outcome, const std::string& what) {
  const auto is_finite = [](double value) { return std::isfinite(value); };
  if (!std::all_of(outcome.value_L.begin(), outcome.value_L.end(), is_finite) || !std::isfinite(outcome.weighted_loss)) {
    fail(what + ": the loss is not finite");
  }
  if (!std::all_of(outcome.gradient_LTE.begin(), outcome.gradient_LTE.end(), is_finite)) {
    fail(what + ": the gradient is not finite");
  }
}

void Judge::same_outcome(const Outcome& given, const Outcome& expected, const std::string& what) {
  same_counts(given.step_counts_LE, expected.step_counts_LE, what + ", counts of the step");
  if (given.micro_counts_MLE.size() != expected.micro_counts_MLE.size()) {
    fail(join_text(what, ": counts of ", given.micro_counts_MLE.size(), " micro-batches, expected ",
                   expected.micro_counts_MLE.size()));
    return;
  }
  for (size_t m = 0; m < given.micro_counts_MLE.size(); ++m) {
    same_counts(given.micro_counts_MLE[m], expected.micro_counts_MLE[m], join_text(what, ", counts of micro-batch ", m));
  }
  same_bits(given.value_L, expected.value_L, what + ", value");
  same_bits({&given.weighted_loss, 1}, {&expected.weighted_loss, 1}, what + ", weighted loss");
  same_bits({&given.task_loss, 1}, {&expected.task_loss, 1}, what + ", task loss");
  same_bits(given.gradient_LTE, expected.gradient_LTE, what + ", gradient");
}

BalanceCase Bench::of_subject(BalanceCase step) const {
  step.subject = subject_;
  step.contract = capabilities_.contracts.front();
  step.weighting = capabilities_.weightings.front();
  step.layers = capabilities_.layer_reductions.front();
  return step;
}

BalanceCase Bench::step(const Lengths& lengths, uint64_t seed, Rows rows) const {
  return of_subject(make_case(lengths, seed, rows));
}

BalanceCase Bench::earlier_step(const BalanceCase& like) const {
  BalanceCase earlier;
  earlier.num_layers = like.num_layers;
  earlier.num_experts = like.num_experts;
  earlier.num_chosen = like.num_chosen;
  earlier.tokens.assign(7, {});
  for (int64_t i = 0; i < earlier.num_layers * earlier.num_tokens() * earlier.num_experts; ++i) {
    earlier.logits_LTE.push_back(std::sin(static_cast<double>(i * i)));  // any fixed numbers that differ
  }
  return of_subject(earlier);
}

Outcome Bench::run(const BalanceCase& step) const {
  if (!uses_earlier_steps(subject_)) return implementation_.run(step);
  const std::vector<BalanceCase> steps = {earlier_step(step), step};
  return implementation_.run_steps(steps, {}).back();
}

Outcome Bench::run_twice(const BalanceCase& step) const {
  const std::vector<BalanceCase> steps = {step, step};
  return implementation_.run_steps(steps, {}).back();
}

Finding does_not_apply(const std::string& why) { return {Verdict::DoesNotApply, why}; }

Finding has_no_notion(const Implementation& implementation, Feature feature) {
  return does_not_apply(join_text(implementation.name(), " has no notion of ", to_string(feature)));
}

std::string contract_text(const GradientContract& contract) {
  return "micro-batches " + averaging_text(contract.micro_batches) + ", ranks " + averaging_text(contract.ranks);
}

double max_vio(std::span<const int64_t> counts_E) {
  const double mean =
      static_cast<double>(std::accumulate(counts_E.begin(), counts_E.end(), int64_t{0})) / static_cast<double>(counts_E.size());
  return (static_cast<double>(*std::max_element(counts_E.begin(), counts_E.end())) - mean) / mean;
}

std::span<const int64_t> layer_of(const std::vector<int64_t>& counts_LE, int64_t layer, int64_t num_layers) {
  const size_t width = counts_LE.size() / static_cast<size_t>(num_layers);
  return {counts_LE.data() + static_cast<size_t>(layer) * width, width};
}

void flatten_logits(BalanceCase& step) {
  for (double& logit : step.logits_LTE) logit *= 1e-10;
}

}  // namespace switchyard::conform
