#include "switchyard/train/evaluate.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>

#include <algorithm>
#include <set>
#include <span>

#include "switchyard/core/error.hpp"
#include "switchyard/measure/evaluation.hpp"
#include "switchyard/measure/routing_tally.hpp"
#include "switchyard/measure/specialization.hpp"
#include "switchyard/router/prescribed_share.hpp"

namespace switchyard {
namespace {

/// Consecutive micro-batches that make one forward.
struct Pack {
  size_t begin = 0;
  size_t end = 0;
};

std::vector<Pack> make_packs(const std::vector<Batch>& micro_batches, int64_t forward_tokens) {
  std::vector<Pack> packs;
  int64_t tokens = 0;
  for (size_t i = 0; i < micro_batches.size(); ++i) {
    const int64_t added = micro_batches[i].ids_BS.numel();
    if (packs.empty() || tokens + added > forward_tokens) {
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
  Evaluator(Decoder& model, const HeldoutSet& heldout, const EvaluationTask& task, const RunRanks& ranks)
      : model_(model), heldout_(heldout), task_(task), ranks_(ranks),
        tally_({model.num_moe_layers(), static_cast<int64_t>(heldout.domains.size()), model.config().num_experts,
                model.config().num_chosen}),
        loss_M_(heldout.micro_batches.size(), 0.0) {}

  /// Packs go round the ranks. Experts of a rank may serve the others, so all run equally many forwards: a rank that the last
  /// round leaves without a pack runs the last one once more, and its result counts nowhere.
  void run() {
    const std::vector<Pack> packs = make_packs(heldout_.micro_batches, task_.forward_tokens);
    const auto num_ranks = static_cast<size_t>(ranks_.size());
    int64_t first_token = 0;
    for (size_t begin = 0; begin < packs.size(); begin += num_ranks) {
      const size_t mine = begin + static_cast<size_t>(ranks_.rank());
      for (size_t i = begin; i < std::min(begin + num_ranks, packs.size()); ++i) {
        const Batch joined = join(packs[i]);
        const TokenLabels labels{joined.domain_T, joined.document_T, micro_batch_numbers_T(micro_batches(packs[i]))};
        if (i == mine) {
          tally_.begin_batch(labels);
          run_forward(joined, packs[i], first_token);
        } else {
          tally_.skip_batch(labels);
        }
        first_token += joined.ids_BS.numel();
      }
      if (mine >= packs.size()) (void)model_.forward(join(packs.back()), context_at(0));
    }
    tally_.sum_over(ranks_.comm());
    ranks_.comm().all_reduce_sum(std::span<double>(loss_M_));
  }

  [[nodiscard]] const RoutingTally& tally() const { return tally_; }

  /// Summed in the order of the micro-batches, whichever rank ran them.
  [[nodiscard]] std::vector<DomainLoss> losses() const {
    std::vector<DomainLoss> losses;
    for (const std::string& name : heldout_.domains) losses.push_back({name, 0.0, 0});
    for (size_t m = 0; m < loss_M_.size(); ++m) {
      DomainLoss& loss = losses.at(static_cast<size_t>(domain_of(heldout_.micro_batches[m])));
      loss.loss_sum += loss_M_[m];
      loss.tokens += heldout_.micro_batches[m].num_targets();
    }
    return losses;
  }

 private:
  [[nodiscard]] std::span<const Batch> micro_batches(const Pack& pack) const {
    return std::span(heldout_.micro_batches).subspan(pack.begin, pack.end - pack.begin);
  }
  [[nodiscard]] Batch join(const Pack& pack) const {
    const std::span<const Batch> batches = micro_batches(pack);
    return join_batches({batches.begin(), batches.end()});
  }
  [[nodiscard]] ForwardContext context_at(int64_t first_token) const {
    ForwardContext context;
    context.phase = RoutingPhase::Evaluate;
    context.seed = task_.seed;
    context.first_token = first_token;
    context.selection_offsets_LE = task_.selection.offsets_LE;
    context.selection_score = task_.selection.score;
    return context;
  }

  void run_forward(const Batch& joined, const Pack& pack, int64_t first_token) {
    ForwardContext context = context_at(first_token);
    context.observe = [this](int64_t layer, const Routing& routing) { tally_.add(layer, routing); };
    const at::Tensor hidden_TD = model_.forward(joined, context);
    const at::Tensor loss_T = model_.token_losses(hidden_TD, joined.targets_BS.reshape({-1}));
    int64_t offset = 0;
    for (size_t m = pack.begin; m < pack.end; ++m) {
      const int64_t length = heldout_.micro_batches[m].ids_BS.numel();
      loss_M_[m] = loss_T.narrow(0, offset, length).sum(at::kDouble).item<double>();
      offset += length;
    }
  }

  Decoder& model_;
  const HeldoutSet& heldout_;
  const EvaluationTask& task_;
  const RunRanks& ranks_;
  RoutingTally tally_;
  std::vector<double> loss_M_;  // of each held-out micro-batch; 0 where another rank ran it
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

std::vector<DomainDocuments> count_documents(const HeldoutSet& heldout) {
  std::vector<std::set<int64_t>> documents(heldout.domains.size());
  for (const Batch& batch : heldout.micro_batches) {
    const std::span<const int64_t> document_T(batch.document_T.const_data_ptr<int64_t>(), static_cast<size_t>(batch.document_T.numel()));
    std::set<int64_t>& seen = documents.at(static_cast<size_t>(domain_of(batch)));
    for (const int64_t document : document_T) {
      if (document >= 0) seen.insert(document);  // padding has -1
    }
  }
  std::vector<DomainDocuments> counts;
  for (size_t i = 0; i < documents.size(); ++i) counts.push_back({heldout.domains[i], static_cast<int64_t>(documents[i].size())});
  return counts;
}

std::optional<EvaluationRecord> evaluate(Decoder& model, const HeldoutSet& heldout, const EvaluationTask& task,
                                         RunRanks& ranks) {
  const at::NoGradGuard no_grad;
  Evaluator evaluator(model, heldout, task, ranks);
  evaluator.run();
  if (!ranks.is_first()) return std::nullopt;
  const TallyShape& shape = evaluator.tally().shape();
  EvaluationInput input;
  input.step = task.step;
  input.sequences = heldout.sequences;
  input.permutations = task.permutations;
  if (!reference_divides(shape.num_domains, shape.num_experts, shape.num_chosen)) {
    input.reference_NE = matrix_from_tensor(prescribed_share_NE(shape.num_domains, shape.num_experts, shape.num_chosen));
  }
  Rng rng(task.seed, "evaluation");
  return make_evaluation(evaluator.tally(), evaluator.losses(), input, rng);
}

}  // namespace switchyard
