#include "switchyard/train/evaluate.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>

#include <span>

#include "switchyard/core/error.hpp"
#include "switchyard/measure/evaluation.hpp"
#include "switchyard/measure/routing_tally.hpp"
#include "switchyard/measure/specialization.hpp"
#include "switchyard/router/prescribed_share.hpp"

namespace switchyard {
namespace {

constexpr int64_t kForwardTokens = 4096;  // large enough to keep the processor busy, small enough for any memory

/// Consecutive micro-batches that make one forward.
struct Pack {
  size_t begin = 0;
  size_t end = 0;
};

std::vector<Pack> make_packs(const std::vector<Batch>& micro_batches) {
  std::vector<Pack> packs;
  int64_t tokens = 0;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const int64_t added = micro_batches[i].ids_BS.numel();
    if (packs.empty() || tokens + added > kForwardTokens) {
      packs.push_back({i, i});
      tokens = 0;
    }
    packs.back().end = i + 1;
    tokens += added;
  }
  return packs;
}

/// The number of each token's micro-batch within the pack, -1 at padding.
at::Tensor micro_batch_numbers_T(std::span<const Batch> micro_batches) {
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const at::Tensor& domain_T = micro_batches[i].domain_T;
    parts.push_back(at::full_like(domain_T, static_cast<int64_t>(i)).masked_fill(domain_T.lt(0), -1));
  }
  return at::cat(parts);
}

int64_t domain_of(const Batch& batch) { return batch.domain_T.max().item<int64_t>(); }

class Evaluator {
 public:
  Evaluator(Decoder& model, const HeldoutSet& heldout, const Selection& selection, uint64_t seed)
      : model_(model), heldout_(heldout), selection_(selection), seed_(seed),
        tally_({model.num_moe_layers(), static_cast<int64_t>(heldout.domains.size()), model.config().num_experts,
                model.config().num_chosen}) {
    for (const std::string& name : heldout.domains) losses_.push_back({name, 0.0, 0});
  }

  void run() {
    for (const Pack& pack : make_packs(heldout_.micro_batches)) {
      run_forward(std::span(heldout_.micro_batches).subspan(pack.begin, pack.end - pack.begin));
    }
  }

  [[nodiscard]] const RoutingTally& tally() const { return tally_; }
  [[nodiscard]] const std::vector<DomainLoss>& losses() const { return losses_; }

 private:
  void run_forward(std::span<const Batch> micro_batches) {
    const Batch joined = join_batches({micro_batches.begin(), micro_batches.end()});
    tally_.begin_batch({joined.domain_T, joined.document_T, micro_batch_numbers_T(micro_batches)});
    ForwardContext context;
    context.phase = RoutingPhase::Evaluate;
    context.seed = seed_;
    context.first_token = first_token_;
    context.selection_offsets_LE = selection_.offsets_LE;
    context.selection_score = selection_.score;
    context.observe = [this](int64_t layer, const Routing& routing) { tally_.add(layer, routing); };
    const at::Tensor hidden_TD = model_.forward(joined, context);
    const at::Tensor loss_T = model_.token_losses(hidden_TD, joined.targets_BS.reshape({-1}));
    int64_t offset = 0;
    for (const Batch& batch : micro_batches) {
      const int64_t length = batch.ids_BS.numel();
      DomainLoss& loss = losses_.at(static_cast<size_t>(domain_of(batch)));
      loss.loss_sum += loss_T.narrow(0, offset, length).sum(at::kDouble).item<double>();
      loss.tokens += batch.num_targets();
      offset += length;
    }
    first_token_ += offset;
  }

  Decoder& model_;
  const HeldoutSet& heldout_;
  const Selection& selection_;
  uint64_t seed_;
  RoutingTally tally_;
  std::vector<DomainLoss> losses_;
  int64_t first_token_ = 0;
};

}  // namespace

HeldoutSet load_heldout(const Dataset& dataset, const RunConfig& config) {
  const BatcherConfig& batcher = config.data.batcher;
  HeldoutSet heldout;
  heldout.micro_batches =
      heldout_batches(dataset, batcher.domains, batcher.sequence_length, config.evaluation.sequences_per_domain,
                      batcher.sequences_per_micro_batch, batcher.segments);
  heldout.domains = batcher.domains.empty() ? dataset.domain_names() : batcher.domains;
  heldout.sequences = config.evaluation.sequences_per_domain * static_cast<int64_t>(heldout.domains.size());
  return heldout;
}

EvaluationRecord evaluate(Decoder& model, const HeldoutSet& heldout, const Selection& selection, int64_t permutations,
                          uint64_t seed, int64_t step) {
  const at::NoGradGuard no_grad;
  Evaluator evaluator(model, heldout, selection, seed);
  evaluator.run();
  const TallyShape& shape = evaluator.tally().shape();
  EvaluationInput input;
  input.step = step;
  input.sequences = heldout.sequences;
  input.permutations = permutations;
  if (!reference_divides(shape.num_domains, shape.num_experts, shape.num_chosen)) {
    input.reference_NE = matrix_from_tensor(prescribed_share_NE(shape.num_domains, shape.num_experts, shape.num_chosen));
  }
  Rng rng(seed, "evaluation");
  return make_evaluation(evaluator.tally(), evaluator.losses(), input, rng);
}

}  // namespace switchyard
