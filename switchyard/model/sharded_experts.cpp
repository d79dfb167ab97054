#include "switchyard/model/sharded_experts.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/expert_rows.hpp"
#include "switchyard/kernels/first_derivative.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// How the tokens of one forward travel. A token goes to each rank that holds experts of its slots, once, however many they
/// are; its slots there are added up before the sum goes home. Slots are sorted by expert, so those for one rank lie together.
struct TokenExchange : torch::CustomClassHolder {
  explicit TokenExchange(Communicator& ranks) : comm(ranks) {}
  Communicator& comm;
  std::vector<int64_t> slots_to_R, slots_from_R;    // this rank's slots on each rank, and what each rank has here
  std::vector<int64_t> visits_to_R, visits_from_R;  // tokens that go to each rank, and that come from each
  at::Tensor token_Y;                               // this rank's token of each visit it makes, by rank
  at::Tensor visit_A, weight_A;                     // of each slot here: the row of its token among those that came, its weight
  at::Tensor by_expert_A;                           // of the slots as they come, (rank, expert): in the order (expert, rank)
  std::vector<int64_t> offsets;                     // E / R + 1, of the slots in the order (expert, rank)
};
using Exchange = c10::intrusive_ptr<TokenExchange>;

int64_t sum_of(const std::vector<int64_t>& values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

// Fills in visits_to_R and token_Y. @return of each slot, which of its rank's visits has its token
std::vector<int64_t> plan_visits(TokenExchange& exchange, const at::Tensor& token_A, int64_t num_tokens) {
  const at::Tensor host_A = token_A.to(at::kCPU).contiguous();
  const std::span<const int64_t> tokens(host_A.const_data_ptr<int64_t>(), static_cast<size_t>(host_A.numel()));
  std::vector<int64_t> visit_T(static_cast<size_t>(num_tokens), -1);  // the latest of each token
  std::vector<int64_t> token_Y, visit_A;
  size_t slot = 0;
  for (const int64_t slots : exchange.slots_to_R) {
    const int64_t first = std::ssize(token_Y);
    for (const size_t end = slot + static_cast<size_t>(slots); slot < end; ++slot) {
      int64_t& visit = visit_T[static_cast<size_t>(tokens[slot])];
      if (visit < first) {
        visit = std::ssize(token_Y);
        token_Y.push_back(tokens[slot]);
      }
      visit_A.push_back(visit - first);
    }
    exchange.visits_to_R.push_back(std::ssize(token_Y) - first);
  }
  exchange.token_Y = at::tensor(token_Y);
  return visit_A;
}

// Fills in by_expert_A and offsets. @param counts_RE  what each rank has on each of this rank's experts
void plan_order(TokenExchange& exchange, const std::vector<std::vector<int64_t>>& counts_RE) {
  std::vector<int64_t> next_R;  // the first slot of each rank that was not met
  int64_t received = 0;
  for (const int64_t slots : exchange.slots_from_R) {
    next_R.push_back(received);
    received += slots;
  }
  std::vector<int64_t> by_expert_A;
  exchange.offsets.push_back(0);
  for (size_t expert = 0; expert < counts_RE.front().size(); ++expert) {
    for (size_t rank = 0; rank < counts_RE.size(); ++rank) {
      for (int64_t i = 0; i < counts_RE[rank][expert]; ++i) by_expert_A.push_back(next_R[rank]++);
    }
    exchange.offsets.push_back(std::ssize(by_expert_A));
  }
  exchange.by_expert_A = at::tensor(by_expert_A);
}

struct SlotNote {
  int64_t visit;  // counted from the first of the rank that sends it
  double weight;
};

// Fills in visit_A and weight_A.
void fetch_slots(TokenExchange& exchange, const std::vector<int64_t>& sent_visit_A, const at::Tensor& weight_A) {
  const at::Tensor wide_A = weight_A.detach().to(at::kCPU, at::kDouble).contiguous();
  std::vector<SlotNote> sent, came(static_cast<size_t>(sum_of(exchange.slots_from_R)));
  for (size_t slot = 0; slot < sent_visit_A.size(); ++slot) {
    sent.push_back({sent_visit_A[slot], wide_A.const_data_ptr<double>()[slot]});
  }
  exchange.comm.all_to_all(sent, exchange.slots_to_R, came, exchange.slots_from_R);
  std::vector<int64_t> visit_A;
  const at::Tensor came_weight_A = at::empty({std::ssize(came)}, at::kDouble);
  int64_t first = 0;
  for (size_t rank = 0; rank < exchange.slots_from_R.size(); ++rank) {
    for (int64_t i = 0; i < exchange.slots_from_R[rank]; ++i) {
      const size_t slot = visit_A.size();
      visit_A.push_back(first + came[slot].visit);
      came_weight_A.mutable_data_ptr<double>()[slot] = came[slot].weight;
    }
    first += exchange.visits_from_R[rank];
  }
  exchange.visit_A = at::tensor(visit_A).index_select(0, exchange.by_expert_A);
  exchange.weight_A = came_weight_A.index_select(0, exchange.by_expert_A).to(weight_A.scalar_type());
}

/// @param offsets  of all experts, as checked_offsets() gives them
Exchange make_exchange(const ExpertSlots& slots, const std::vector<int64_t>& offsets, int64_t num_tokens, Communicator& comm) {
  auto exchange = c10::make_intrusive<TokenExchange>(comm);
  const auto num_ranks = static_cast<size_t>(comm.size());
  const size_t num_experts = offsets.size() - 1;
  const size_t own_experts = num_experts / num_ranks;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    exchange->slots_to_R.push_back(offsets[(rank + 1) * own_experts] - offsets[rank * own_experts]);
  }
  const std::vector<int64_t> sent_visit_A = plan_visits(*exchange, slots.token_A, num_tokens);

  std::vector<int64_t> told;  // to all ranks: slots of each expert, visits to each rank
  for (size_t expert = 0; expert < num_experts; ++expert) told.push_back(offsets[expert + 1] - offsets[expert]);
  told.insert(told.end(), exchange->visits_to_R.begin(), exchange->visits_to_R.end());
  std::vector<int64_t> told_R(num_ranks * told.size());
  comm.all_gather(told, told_R);
  std::vector<std::vector<int64_t>> counts_RE;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    const auto from_rank = told_R.begin() + static_cast<ptrdiff_t>(rank * told.size());
    const auto own = from_rank + static_cast<ptrdiff_t>(static_cast<size_t>(comm.rank()) * own_experts);
    counts_RE.emplace_back(own, own + static_cast<ptrdiff_t>(own_experts));
    exchange->slots_from_R.push_back(sum_of(counts_RE.back()));
    exchange->visits_from_R.push_back(from_rank[static_cast<ptrdiff_t>(num_experts) + comm.rank()]);
  }
  plan_order(*exchange, counts_RE);
  fetch_slots(*exchange, sent_visit_A, slots.weight_A);
  return exchange;
}

std::vector<int64_t> times(const std::vector<int64_t>& rows_R, int64_t bytes) {
  std::vector<int64_t> result;
  for (const int64_t rows : rows_R) result.push_back(rows * bytes);
  return result;
}

/// Rows to their ranks. No autograd.
at::Tensor travel(const at::Tensor& rows, const std::vector<int64_t>& to_R, const std::vector<int64_t>& from_R,
                  Communicator& comm) {
  const at::Tensor sent = rows.contiguous();
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes[0] = sum_of(from_R);
  at::Tensor received = at::empty(sizes, rows.options());
  int64_t row_bytes = static_cast<int64_t>(rows.element_size());
  for (size_t i = 1; i < sizes.size(); ++i) row_bytes *= sizes[i];
  const std::span<const std::byte> send(static_cast<const std::byte*>(sent.const_data_ptr()), sent.nbytes());
  const std::span<std::byte> receive(static_cast<std::byte*>(received.mutable_data_ptr()), received.nbytes());
  comm.all_to_all(send, times(to_R, row_bytes), receive, times(from_R, row_bytes));
  return received;
}

at::Tensor tokens_to_owners(const at::Tensor& rows_TD, const TokenExchange& exchange) {
  return travel(gather_rows(rows_TD, exchange.token_Y), exchange.visits_to_R, exchange.visits_from_R, exchange.comm);
}
// Each owner's slots of a token are added up there, what comes home here.
at::Tensor sums_from_owners(const at::Tensor& rows_AD, const at::Tensor& weight_A, int64_t num_tokens,
                            const TokenExchange& exchange) {
  const at::Tensor sum_YD = combine_rows(rows_AD, weight_A, exchange.visit_A, sum_of(exchange.visits_from_R));
  const at::Tensor home_YD = travel(sum_YD, exchange.visits_from_R, exchange.visits_to_R, exchange.comm);
  return combine_rows(home_YD, at::Tensor(), exchange.token_Y, num_tokens);
}

// As ExpertsFunction of kernels/experts.cpp, with the tokens away from home in between. The rows that came are saved: fetching them
// again would cost another exchange.
struct ShardedExpertsFunction : torch::autograd::Function<ShardedExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                            const at::Tensor& down_EDF, const at::Tensor& /*weight_A*/, const Exchange& exchange) {
    const at::Tensor came_YD = tokens_to_owners(hidden_TD, *exchange);
    const ExpertRows rows = expert_rows(came_YD, gate_up_EFD, down_EDF, exchange->visit_A, exchange->offsets);
    context->save_for_backward({gate_up_EFD, down_EDF, came_YD, rows.gate_up});
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    context->saved_data["tokens"] = hidden_TD.size(0);
    return sums_from_owners(rows.out_AD, exchange->weight_A, hidden_TD.size(0), *exchange);
  }

  // The exchanges do not depend on which gradients are wanted: all ranks must take part in each.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("sharded_experts", "grouped_experts_reference() with all experts in one process");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &gate_up_EFD = saved[0], &down_EDF = saved[1], &came_YD = saved[2], &gate_up = saved[3];
    const auto exchange = c10::static_intrusive_pointer_cast<TokenExchange>(context->saved_data["exchange"].toCapsule());
    const at::Tensor d_out_YD = tokens_to_owners(gradients[0], *exchange);
    const ExpertRowsGradients result = expert_rows_backward(came_YD, gate_up_EFD, down_EDF, exchange->visit_A, exchange->weight_A,
                                                            exchange->offsets, gate_up, d_out_YD);
    const at::Tensor as_they_came_A = at::empty_like(result.weight_A).index_copy_(0, exchange->by_expert_A, result.weight_A);
    const at::Tensor d_weight_A = travel(as_they_came_A, exchange->slots_from_R, exchange->slots_to_R, exchange->comm);
    const at::Tensor d_hidden_TD =
        sums_from_owners(result.rows_AD, at::Tensor(), context->saved_data["tokens"].toInt(), *exchange);
    return {d_hidden_TD, result.gate_up_EFD, result.down_EDF, d_weight_A, at::Tensor()};
  }
};

/// The exchange alone, either way; its backward goes the other way.
struct TravelFunction : torch::autograd::Function<TravelFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& rows, const std::vector<int64_t>& to_R,
                            const std::vector<int64_t>& from_R, const Exchange& exchange) {
    context->saved_data["to"] = to_R;
    context->saved_data["from"] = from_R;
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    return travel(rows, to_R, from_R, exchange->comm);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    refuse_second_derivative("sharded_experts_reference", "grouped_experts_reference() with all experts in one process");
    const auto exchange = c10::static_intrusive_pointer_cast<TokenExchange>(context->saved_data["exchange"].toCapsule());
    const at::Tensor back = travel(gradients[0], context->saved_data["from"].toIntVector(),
                                   context->saved_data["to"].toIntVector(), exchange->comm);
    return {back, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

/// How this rank's slots travel. Before anything is sent it throws ShapeError for what does not fit.
Exchange checked_exchange(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                          const ExpertSlots& slots, Communicator& comm) {
  SWITCHYARD_CHECK(hidden_TD.dim() == 2 && gate_up_EFD.dim() == 3 && down_EDF.dim() == 3 &&
                       gate_up_EFD.size(0) == down_EDF.size(0) && gate_up_EFD.size(1) == 2 * down_EDF.size(2) &&
                       gate_up_EFD.size(2) == hidden_TD.size(1) && down_EDF.size(1) == hidden_TD.size(1) &&
                       hidden_TD.size(1) >= 1 && down_EDF.size(2) >= 1,
                   ShapeError, "sharded experts: hidden ", hidden_TD.sizes(), ", gate_up ", gate_up_EFD.sizes(), " and down ",
                   down_EDF.sizes(), " do not fit [T, D], [E / R, 2F, D], [E / R, D, F] of widths D and F of at least 1");
  const std::vector<int64_t> offsets = checked_offsets(hidden_TD, gate_up_EFD.size(0) * comm.size(), slots);
  return make_exchange(slots, offsets, hidden_TD.size(0), comm);
}

}  // namespace

at::Tensor sharded_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                           const ExpertSlots& slots, Communicator& comm) {
  return ShardedExpertsFunction::apply(hidden_TD, gate_up_EFD, down_EDF, slots.weight_A,
                                       checked_exchange(hidden_TD, gate_up_EFD, down_EDF, slots, comm));
}

at::Tensor sharded_experts_reference(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                     const ExpertSlots& slots, Communicator& comm) {
  const Exchange exchange = checked_exchange(hidden_TD, gate_up_EFD, down_EDF, slots, comm);
  const at::ScalarType wide = wide_type(hidden_TD.scalar_type());
  // Every slot travels by itself: on the owner each row that came is a token with one slot of weight 1.
  const at::Tensor rows_AD =
      TravelFunction::apply(at::index_select(hidden_TD, 0, slots.token_A), exchange->slots_to_R, exchange->slots_from_R, exchange);
  const ExpertSlots own{exchange->by_expert_A, at::ones({rows_AD.size(0)}, wide), at::tensor(exchange->offsets)};
  const at::Tensor out_AD = TravelFunction::apply(grouped_experts_reference(rows_AD, gate_up_EFD, down_EDF, own),
                                                  exchange->slots_from_R, exchange->slots_to_R, exchange);
  const at::Tensor zeros_TD = at::zeros(hidden_TD.sizes(), wide);
  return at::index_add(zeros_TD, 0, slots.token_A, out_AD.to(wide).mul(slots.weight_A.unsqueeze(1))).to(hidden_TD.scalar_type());
}

}  // namespace switchyard
