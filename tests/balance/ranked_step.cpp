#include "ranked_step.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <mutex>

#include "switchyard/comm/threads.hpp"

namespace switchyard::toy {
namespace {

at::Tensor index_tensor(const std::vector<int64_t>& index) {
  return at::from_blob(const_cast<int64_t*>(index.data()), {static_cast<int64_t>(index.size())}, at::kLong).clone();
}

at::Tensor new_leaf(const at::Tensor& values) { return values.detach().clone().set_requires_grad(true); }

// The same weights, and the rank's tokens of the whole step.
ToyModel part_of(const ToyModel& model, const at::Tensor& token_index) {
  ToyModel part;
  part.hidden_TD = new_leaf(model.hidden_TD.detach().index_select(0, token_index));
  part.mix_LED = model.mix_LED;
  for (size_t layer = 0; layer < kLayers; ++layer) {
    part.router_LED.push_back(new_leaf(model.router_LED[layer]));
    part.offset_LTE.push_back(new_leaf(at::zeros({token_index.size(0), kExperts}, at::kDouble)));
  }
  return part;
}

void add_part(Gradients& whole, const Gradients& part, const at::Tensor& token_index) {
  if (!part.hidden_TD.defined()) return;
  whole.hidden_TD.index_add_(0, token_index, part.hidden_TD);
  for (size_t layer = 0; layer < kLayers; ++layer) {
    whole.router_LED[layer].add_(part.router_LED[layer]);
    whole.logits_LTE[layer].index_add_(0, token_index, part.logits_LTE[layer]);
  }
}

Gradients zero_gradients(const ToyModel& model) {
  Gradients zero{at::zeros(model.hidden_TD.sizes(), at::kDouble), {}, {}};
  for (size_t layer = 0; layer < kLayers; ++layer) {
    zero.router_LED.push_back(at::zeros(model.router_LED[layer].sizes(), at::kDouble));
    zero.logits_LTE.push_back(at::zeros(model.offset_LTE[layer].sizes(), at::kDouble));
  }
  return zero;
}

double weight_of_rank(Averaging contract, const RankedLayout& layout, int64_t rank) {
  if (contract == Averaging::Sum) return 1.0;
  if (contract == Averaging::Mean) return 1.0 / static_cast<double>(layout.ranks.size());
  return static_cast<double>(layout.ranks[static_cast<size_t>(rank)].num_valid()) /
         static_cast<double>(layout.whole.num_valid());
}

}  // namespace

RankedLayout make_ranked_layout(const RankedLengths& lengths, int64_t num_domains) {
  RankedLayout layout;
  const size_t num_ranks = lengths.front().size();
  layout.tokens_of_rank.resize(num_ranks);
  std::vector<std::vector<std::vector<int64_t>>> of_rank(num_ranks);  // [r][m]
  std::vector<std::vector<int64_t>> joined;                           // [m]
  std::vector<int64_t> rank_of_segment;
  int64_t token = 0;
  for (const auto& micro_batch : lengths) {
    joined.emplace_back();
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      of_rank[rank].push_back(micro_batch[rank]);
      for (const int64_t length : micro_batch[rank]) {
        joined.back().push_back(length);
        if (length >= 0) rank_of_segment.push_back(static_cast<int64_t>(rank));
        for (int64_t i = 0; i < std::abs(length); ++i) layout.tokens_of_rank[rank].push_back(token++);
      }
    }
  }
  layout.whole = make_layout(joined);
  layout.whole.segment_rank = rank_of_segment;
  for (const auto& segments : of_rank) layout.ranks.push_back(make_layout(segments));
  for (size_t segment = 0; num_domains > 0 && segment < rank_of_segment.size(); ++segment) {
    const int64_t domain = static_cast<int64_t>(segment) % num_domains;
    layout.whole.segment_domain.push_back(domain);
    layout.ranks[static_cast<size_t>(rank_of_segment[segment])].segment_domain.push_back(domain);
  }
  return layout;
}

RankedLayout uneven_ranks(int64_t num_ranks, int64_t num_domains) {
  const RankedLengths all = {{{6, 2, -2}, {3}, {4, 1}, {2, -1, 5}},
                             {{1, -3}, {5, 0, 2}, {}, {3}},
                             {{-2}, {}, {-1}, {-3}},
                             {{4, 3}, {-2, 2}, {7}, {1, 1, 1}}};
  RankedLengths lengths;
  for (const auto& micro_batch : all) lengths.emplace_back(micro_batch.begin(), micro_batch.begin() + num_ranks);
  return make_ranked_layout(lengths, num_domains);
}

RankedResult run_ranked_step(const ToyModel& model, const RankedLayout& layout, const BalanceConfig& config,
                             const RankedOptions& options) {
  RankedResult result{zero_gradients(model), std::vector<StepResult>(layout.ranks.size())};
  std::mutex guard;
  run_ranks(static_cast<int64_t>(layout.ranks.size()), [&](Communicator& comm) {
    const auto rank = static_cast<size_t>(comm.rank());
    const at::Tensor token_index = index_tensor(layout.tokens_of_rank[rank]);
    const ToyModel part = part_of(model, token_index);
    StepPlan plan = plan_of(layout.ranks[rank], options.partition, options.contract.micro_batches);
    plan.contract.ranks = options.contract.ranks;
    if (options.counted == CountedBy::Nobody) plan.num_micro_batches = 0;
    const BalanceRanks ranks{comm};
    const RankSide side{&ranks, layout.whole.num_valid(), weight_of_rank(options.contract.ranks, layout, comm.rank())};
    StepResult own = run_step(part, layout.ranks[rank], config, plan, options.state, options.order, side);
    const std::lock_guard lock(guard);
    add_part(result.gradients, own.gradients, token_index);
    result.ranks[rank] = std::move(own);
  });
  return result;
}

}  // namespace switchyard::toy
