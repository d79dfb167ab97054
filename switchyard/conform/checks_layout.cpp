// B17 to B20: ranks, stages, layouts, and what a graph may freeze.

#include "switchyard/conform/bench.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

bool is_rank_local(const Bench& bench) { return bench.has_scope(ScopeKind::MicroBatch); }

std::string grid_text(const DeviceGrid& grid) {
  return join_text("data ", grid.data, " x context ", grid.context, " x tensor ", grid.tensor,
                   grid.tensor_tokens == TensorTokens::Sharded ? " (tokens sharded)" : "", " x pipeline ", grid.pipeline);
}

void judge_outcome(const Rearranged& changed, const Outcome& given, const Outcome& expected, const BalanceCase& base,
                   const std::string& what, Judge& judge) {
  judge.same_counts(given.step_counts_LE, expected.step_counts_LE, "counts, " + what);
  judge.same(given.value_L, expected.value_L, "value, " + what);
  judge.near(given.weighted_loss, expected.weighted_loss, "weighted loss, " + what);
  judge.same(gradient_at_sources(changed, given, base), expected.gradient_LTE, "gradient, " + what);
}

// The same tokens on a grid against the same shares of them on plain ranks.
void judge_grid(const Bench& bench, const BalanceCase& base, const DeviceGrid& grid, Judge& judge) {
  const Rearranged changed = on_grid(base, grid);
  Rearranged plain = changed;
  plain.step.grid = {};
  const Outcome ranks = bench.run(plain.step);
  const Outcome devices = bench.run(changed.step);
  Outcome expected = ranks;
  expected.gradient_LTE = gradient_at_sources(plain, ranks, base);
  judge_outcome(changed, devices, expected, base, grid_text(grid) + " against as many ranks with all layers", judge);
  if (is_rank_local(bench)) return;
  judge_outcome(changed, devices, bench.run(base), base, grid_text(grid) + " against one process", judge);
}

}  // namespace

Finding check_collectives(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  if (is_rank_local(bench) && !bench.has(Feature::MicroBatches)) {
    return does_not_apply("under this scope ranks are like micro-batches, and there is one only");
  }
  for (const int64_t ranks : {2, 4}) {
    const BalanceCase many = bench.step(uneven_lengths(bench.micro_batches(2), ranks), 18);
    const Rearranged one = is_rank_local(bench) ? ranks_as_micro_batches(many) : on_one_rank(many);
    const Outcome expected = bench.run(one.step);
    const Outcome outcome = bench.run(many);
    const std::string what = join_text(ranks, " ranks against one process with their tokens");
    judge.same_counts(outcome.step_counts_LE, expected.step_counts_LE, "counts of " + what);
    judge.same(outcome.value_L, expected.value_L, "value of " + what);
    judge.same(outcome.gradient_LTE, gradient_at_sources(one, expected, many), "gradient of " + what);
  }
  return judge.finding();
}

Finding check_stages(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  const BalanceCase base =
      bench.of_subject(make_case(uneven_lengths(bench.micro_batches(2), 1), 19, Rows::OnePerSequence, {3, 4, 2}));
  for (const int64_t pipeline : {2, 3}) {
    for (const int64_t data : {1, 2}) judge_grid(bench, base, {.data = data, .pipeline = pipeline}, judge);
  }
  return judge.finding();
}

Finding check_schedules(const Implementation&, const Subject&) {
  return does_not_apply("there are no pipeline schedules (1F1B, interleaved, ZBV) here to run a step under");
}

Finding check_layouts(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  Judge judge = bench.judge();
  Lengths lengths = {{{6, 4, 5, 8}}, {{4, 7, 9, 4}}};
  lengths.resize(static_cast<size_t>(bench.micro_batches(2)));
  const BalanceCase base = bench.of_subject(make_case(lengths, 20));
  for (const int64_t data : {1, 2}) {
    for (const int64_t context : {1, 2}) {
      for (const int64_t tensor : {1, 2}) {
        for (const TensorTokens tokens : {TensorTokens::Replicated, TensorTokens::Sharded}) {
          const DeviceGrid grid{.data = data, .context = context, .tensor = tensor, .tensor_tokens = tokens};
          const bool repeats = tensor == 1 && tokens == TensorTokens::Sharded;
          const bool splits = num_shards(grid) > data;
          if (!repeats && (!splits || bench.splits_segments())) judge_grid(bench, base, grid, judge);
        }
      }
    }
  }
  return judge.finding();
}

Finding check_new_denominators(const Implementation& implementation, const Subject& subject) {
  const Bench bench(implementation, subject);
  if (keeps_state(subject) && !bench.has(Feature::SavedState)) return has_no_notion(implementation, Feature::SavedState);
  Judge judge = bench.judge();
  const std::vector<BalanceCase> steps = {bench.step({{{4, 2}}}, 21), bench.step({{{9, 8}}}, 22)};
  const std::vector<Outcome> together = implementation.run_steps(steps, {});
  const Outcome alone = implementation.run(steps[1], keeps_state(subject) ? together.at(0).state : StateBytes());
  judge.same(together.at(1).value_L, alone.value_L, "value of a step of 17 tokens behind one of 6, against the step alone");
  judge.same(together.at(1).gradient_LTE, alone.gradient_LTE,
             "gradient of a step of 17 tokens behind one of 6, against the step alone");
  return judge.finding();
}

Finding check_captured_graphs(const Implementation&, const Subject&) {
  return does_not_apply("nothing is captured and replayed here (no CUDA graphs)");
}

}  // namespace switchyard::conform
