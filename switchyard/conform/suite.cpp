#include "switchyard/conform/suite.hpp"

#include <algorithm>
#include <exception>

#include "switchyard/conform/bench.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard::conform {
namespace {

using enum Feature;

std::vector<Check> scale_checks() {
  return {
      {"B1",
       "rank-scale",
       "D ranks with the same tokens have the gradient of one",
       "Megatron-LM #3672: 1/D of it",
       {Ranks},
       check_rank_scale},
      {"B1",
       "dense-oracle",
       "value and gradient are those of a plain expression over the whole step",
       "Megatron-LM #3672",
       {},
       check_dense_oracle},
      {"B2",
       "denominators",
       "sum f = 1, and re-cutting with equal frequencies changes nothing",
       "Megatron-LM #7213: counts of all micro-batches over the tokens of the current one",
       {MicroBatches},
       check_denominators},
      {"B3",
       "contract",
       "who averages, and who shares a sequence, does not change the gradient",
       "Megatron-LM #1652, #2237, #5047",
       {},
       check_contract},
      {"B4",
       "accumulation",
       "M equal micro-batches are one",
       "NeMo Automodel #3359: M times the loss",
       {MicroBatches},
       check_accumulation},
      {"B5",
       "coefficient",
       "the gradient is that of the loss, linear in the coefficient; 0 changes no bit",
       "NeMo Automodel #1408: no gradient, coefficient unused",
       {},
       check_coefficient},
      {"B6",
       "enters-once",
       "the loss enters once for any number of ranks and any contract",
       "transformers #48690, TRL #4070, ms-swift #5375: multiplied by the number of ranks, or added twice",
       {},
       check_enters_once},
      {"B7",
       "recompute",
       "a forward that runs twice counts once, to the bit",
       "Megatron-LM #1330, torchtitan #4772",
       {Recompute},
       check_recompute},
  };
}

std::vector<Check> token_checks() {
  return {
      {"B8",
       "used-choices",
       "f counts the choices that were used",
       "Megatron-LM #2767: those without bias and group limit",
       {GivenChoices},
       check_used_choices},
      {"B9",
       "padding",
       "padding changes nothing, and a step of it gives 0",
       "Megatron-LM #1984, transformers #28505, torchtitan #4594",
       {Padding},
       check_padding},
      {"B10",
       "packing",
       "packed, padded and one document at a time agree",
       "Megatron-LM #6108: a packed row taken for one sequence",
       {Packing},
       check_packing},
      {"B11",
       "own-length",
       "each sequence is divided by its own length",
       "Megatron-LM seq_aux_loss with a mask: by the mean length",
       {},
       check_own_length},
      {"B12",
       "capacity",
       "counts are of requests, before any drop",
       "Megatron-LM #1617: padded to capacity, always 1.0",
       {GivenChoices, Capacity},
       check_capacity},
      {"B13",
       "every-choice",
       "balance gives 1 for every K, and all K choices count",
       "transformers #43688, OLMoE #40, DeepSpeed #5156: value K, or the first choice only",
       {},
       check_every_choice},
      {"B14",
       "layers-apart",
       "layers are never pooled",
       "transformers #28255: opposite collapses cancel",
       {},
       check_layers_apart},
      {"B15",
       "normalised-scores",
       "scores sum to 1 for any finite logits",
       "Megatron-LM #1545, OLMo-core #255: eps in the divisor",
       {},
       check_normalised_scores},
      {"B16",
       "no-certificate",
       "the loss may be below 1, and 1 without balance; MaxVio tells",
       "Megatron-LM's test asserts loss >= 1",
       {},
       check_no_certificate},
  };
}

std::vector<Check> layout_checks() {
  return {
      {"B17",
       "collectives",
       "N ranks are one process with their tokens",
       "ltp-megatron #68: the result of all_reduce ignored; torch #58005: gradients doubled",
       {Ranks},
       check_collectives},
      {"B18",
       "stages",
       "the same for any number of pipeline stages",
       "megablocks #64, OLMo-core: groups that mix stages",
       {Ranks, Devices},
       check_stages},
      {"B18",
       "schedules",
       "the same for any pipeline schedule",
       "torchtitan #2061: wrong under ZBV and interleaved",
       {},
       check_schedules},
      {"B19",
       "layouts",
       "the same for any data x context x tensor layout",
       "pith-train: the group omits context ranks",
       {Ranks, Devices},
       check_layouts},
      {"B20",
       "new-denominators",
       "denominators are those of the step at hand",
       "torchtitan #4744, Megatron-LM #1494",
       {},
       check_new_denominators},
      {"B20",
       "captured-graphs",
       "a replayed graph reads new denominators",
       "torchtitan #4744: that of the first step, frozen",
       {},
       check_captured_graphs},
  };
}

std::vector<Check> state_checks() {
  return {
      {"B21",
       "buffer",
       "the buffer holds what the scope counts, be it micro-batches or steps, and nothing of what lies behind",
       "ms-swift #6787",
       {},
       check_buffer},
      {"B22",
       "saved-state",
       "saved and restored to the bit; moves once per step",
       "torchtitan #1403, NeMo-RL #3523: bf16, not saved",
       {SavedState},
       check_saved_state},
      {"B22",
       "saved-progress",
       "saved and restored to the bit in the middle of a step",
       "ISEEKYAN/Megatron-LM #81, marin #9352: lost or pending",
       {SavedProgress, MicroBatches},
       check_saved_progress},
      {"B23",
       "evaluation",
       "evaluation leaves no trace; the task's loss is reported without the balancing loss",
       "megablocks #69, open_lm #253, nanoMoE",
       {Evaluation},
       check_evaluation},
      {"B24",
       "never-silent",
       "switched on: a gradient or an error; offsets that work against the load",
       "transformers #44243, LLaMA-Factory #3276",
       {},
       check_never_silent},
      {"B25",
       "multi-token-prediction",
       "those layers have their own denominators",
       "torchtitan #4682, Megatron-LM #1585",
       {},
       check_multi_token_prediction},
      {"B26",
       "metric-scope",
       "metrics of a step come from its summed counts",
       "OLMo-core, prime-rl: largest of local values",
       {},
       check_metric_scope},
      {"B27",
       "order",
       "the order of ranks and micro-batches matters to the prefix only, and it to nothing else",
       "Megatron-LM, pith-train: prefixes called global",
       {MicroBatches},
       check_order},
      {"B28",
       "exact-counts",
       "counts are exact integers",
       "pith-train: int32; others: fp32, exact to 2^24 only",
       {CountAccumulation},
       check_exact_counts},
  };
}

}  // namespace

std::string to_string(Verdict verdict) {
  if (verdict == Verdict::Holds) return "holds";
  return verdict == Verdict::Fails ? "fails" : "does not apply";
}

const std::vector<Check>& check_table() {
  static const std::vector<Check> kChecks = [] {
    std::vector<Check> all;
    for (const std::vector<Check>& part : {scale_checks(), token_checks(), layout_checks(), state_checks()}) {
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }();
  return kChecks;
}

Result run_check(const Implementation& implementation, const Check& check, const Subject& subject) {
  const Capabilities capabilities = implementation.capabilities();
  check_capabilities(capabilities, implementation.name());
  for (const Feature feature : check.needs) {
    if (!capabilities.has(feature)) return {&check, subject, has_no_notion(implementation, feature)};
  }
  try {
    return {&check, subject, check.run(implementation, subject)};
  } catch (const std::exception& error) {
    return {&check, subject, {Verdict::Fails, join_text("error: ", error.what())}};
  }
}

std::vector<Result> run_suite(const Implementation& implementation, const std::optional<std::string>& only) {
  check_capabilities(implementation.capabilities(), implementation.name());
  std::vector<std::string> known;
  for (const Check& check : check_table()) {
    if (known.empty() || known.back() != check.id) known.emplace_back(check.id);
  }
  if (only && std::find(known.begin(), known.end(), *only) == known.end()) {
    throw UsageError(unknown_name("invariant", *only, known));
  }
  std::vector<Result> results;
  for (const Check& check : check_table()) {
    if (only && *only != check.id) continue;
    for (const Subject& subject : implementation.capabilities().subjects) {
      results.push_back(run_check(implementation, check, subject));
    }
  }
  return results;
}

}  // namespace switchyard::conform
