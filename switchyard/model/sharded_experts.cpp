#include "switchyard/model/sharded_experts.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/kernels/combine.hpp"
#include "switchyard/kernels/expert_rows.hpp"
#include "switchyard/kernels/types.hpp"

namespace switchyard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// How the rows of one forward travel. Slots are sorted by expert, so those for one rank lie together.
struct RowExchange : torch::CustomClassHolder {
  explicit RowExchange(Communicator& ranks) : comm(ranks) {}
  Communicator& comm;
  std::vector<int64_t> to_R;     // rows of this rank's slots that go to each rank
  std::vector<int64_t> from_R;   // rows that come from each rank
  at::Tensor by_expert_A;        // of the rows as they come, (rank, expert): in the order (expert, rank)
  at::Tensor by_rank_A;          // the inverse
  std::vector<int64_t> offsets;  // E / R + 1, of the rows in the order (expert, rank)
};
using Exchange = c10::intrusive_ptr<RowExchange>;

Exchange make_exchange(const at::Tensor& offsets_E, Communicator& comm) {
  auto exchange = c10::make_intrusive<RowExchange>(comm);
  const at::Tensor host_E = offsets_E.to(at::kCPU).contiguous();
  const int64_t* offsets = host_E.const_data_ptr<int64_t>();
  const auto num_ranks = static_cast<size_t>(comm.size());
  const auto num_experts = static_cast<size_t>(host_E.numel() - 1);
  const size_t own_experts = num_experts / num_ranks;
  const size_t first_own = static_cast<size_t>(comm.rank()) * own_experts;

  std::vector<int64_t> counts_E;
  for (size_t expert = 0; expert < num_experts; ++expert) counts_E.push_back(offsets[expert + 1] - offsets[expert]);
  std::vector<int64_t> counts_RE(num_ranks * num_experts);
  comm.all_gather(counts_E, counts_RE);

  std::vector<std::vector<int64_t>> begin_RE(num_ranks);  // where the rows of (rank, own expert) come to lie
  int64_t received = 0;
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    exchange->to_R.push_back(offsets[(rank + 1) * own_experts] - offsets[rank * own_experts]);
    const int64_t before = received;
    for (size_t expert = 0; expert < own_experts; ++expert) {
      begin_RE[rank].push_back(received);
      received += counts_RE[rank * num_experts + first_own + expert];
    }
    exchange->from_R.push_back(received - before);
  }
  exchange->by_expert_A = at::empty({received}, at::kLong);
  exchange->by_rank_A = at::empty({received}, at::kLong);
  int64_t* by_expert = exchange->by_expert_A.mutable_data_ptr<int64_t>();
  int64_t* by_rank = exchange->by_rank_A.mutable_data_ptr<int64_t>();
  int64_t row = 0;
  exchange->offsets.push_back(0);
  for (size_t expert = 0; expert < own_experts; ++expert) {
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      const int64_t count = counts_RE[rank * num_experts + first_own + expert];
      for (int64_t i = 0; i < count; ++i) {
        by_expert[row] = begin_RE[rank][expert] + i;
        by_rank[begin_RE[rank][expert] + i] = row++;
      }
    }
    exchange->offsets.push_back(row);
  }
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
  sizes[0] = std::accumulate(from_R.begin(), from_R.end(), int64_t{0});
  at::Tensor received = at::empty(sizes, rows.options());
  int64_t row_bytes = static_cast<int64_t>(rows.element_size());
  for (size_t i = 1; i < sizes.size(); ++i) row_bytes *= sizes[i];
  const std::span<const std::byte> send(static_cast<const std::byte*>(sent.const_data_ptr()), sent.nbytes());
  const std::span<std::byte> receive(static_cast<std::byte*>(received.mutable_data_ptr()), received.nbytes());
  comm.all_to_all(send, times(to_R, row_bytes), receive, times(from_R, row_bytes));
  return received;
}

at::Tensor to_owners(const at::Tensor& rows_A, const RowExchange& exchange) {
  return travel(rows_A, exchange.to_R, exchange.from_R, exchange.comm);
}
at::Tensor from_owners(const at::Tensor& rows_A, const RowExchange& exchange) {
  return travel(rows_A, exchange.from_R, exchange.to_R, exchange.comm);
}

// As ExpertsFunction of kernels/experts.cpp, with the rows away from home in between. The rows that came are saved: fetching them
// again would cost another exchange.
struct ShardedExpertsFunction : torch::autograd::Function<ShardedExpertsFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD,
                            const at::Tensor& down_EDF, const at::Tensor& weight_A, const at::Tensor& token_A,
                            const Exchange& exchange) {
    const at::Tensor& order_A = exchange->by_expert_A;
    const at::Tensor rows_AD = to_owners(at::index_select(hidden_TD, 0, token_A), *exchange);
    const at::Tensor row_weight_A = to_owners(weight_A, *exchange).index_select(0, order_A);
    // Here the rows that came are the tokens, and the order of the experts says which of them each slot has.
    const ExpertRows rows = expert_rows(rows_AD, gate_up_EFD, down_EDF, order_A, exchange->offsets);
    const at::Tensor home_AD = from_owners(rows.out_AD.index_select(0, exchange->by_rank_A), *exchange);
    context->save_for_backward({gate_up_EFD, down_EDF, token_A, rows_AD, row_weight_A, rows.gate_up});
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    context->saved_data["tokens"] = hidden_TD.size(0);
    return combine_rows(home_AD, weight_A, token_A, hidden_TD.size(0));
  }

  // The exchanges do not depend on which gradients are wanted: all ranks must take part in each.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &gate_up_EFD = saved[0], &down_EDF = saved[1], &token_A = saved[2], &rows_AD = saved[3],
                     &row_weight_A = saved[4], &gate_up = saved[5];
    const auto exchange = c10::static_intrusive_pointer_cast<RowExchange>(context->saved_data["exchange"].toCapsule());
    const at::Tensor d_out_AD = to_owners(at::index_select(gradients[0], 0, token_A), *exchange);
    const ExpertRowsGradients result = expert_rows_backward(rows_AD, gate_up_EFD, down_EDF, exchange->by_expert_A, row_weight_A,
                                                            exchange->offsets, gate_up, d_out_AD);
    const at::Tensor d_rows_AD = from_owners(result.rows_AD.index_select(0, exchange->by_rank_A), *exchange);
    const at::Tensor d_weight_A = from_owners(result.weight_A.index_select(0, exchange->by_rank_A), *exchange);
    const at::Tensor d_hidden_TD = combine_rows(d_rows_AD, at::Tensor(), token_A, context->saved_data["tokens"].toInt());
    return {d_hidden_TD, result.gate_up_EFD, result.down_EDF, d_weight_A, at::Tensor(), at::Tensor()};
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
    const auto exchange = c10::static_intrusive_pointer_cast<RowExchange>(context->saved_data["exchange"].toCapsule());
    const at::Tensor back = travel(gradients[0], context->saved_data["from"].toIntVector(),
                                   context->saved_data["to"].toIntVector(), exchange->comm);
    return {back, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

void check_shard(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                 const ExpertSlots& slots, const Communicator& comm) {
  SWITCHYARD_CHECK(hidden_TD.dim() == 2 && gate_up_EFD.dim() == 3 && down_EDF.dim() == 3 &&
                       gate_up_EFD.size(0) == down_EDF.size(0) && gate_up_EFD.size(1) == 2 * down_EDF.size(2) &&
                       gate_up_EFD.size(2) == hidden_TD.size(1) && down_EDF.size(1) == hidden_TD.size(1),
                   ShapeError, "sharded experts: hidden ", hidden_TD.sizes(), ", gate_up ", gate_up_EFD.sizes(), " and down ",
                   down_EDF.sizes(), " do not fit [T, D], [E / R, 2F, D], [E / R, D, F]");
  SWITCHYARD_CHECK(slots.offsets_E.scalar_type() == at::kLong && slots.offsets_E.numel() == gate_up_EFD.size(0) * comm.size() + 1,
                   ShapeError, "sharded experts: offsets_E has ", slots.offsets_E.numel(), " entries of type ",
                   slots.offsets_E.scalar_type(), "; expected int64, and ", gate_up_EFD.size(0) * comm.size() + 1, " for ",
                   comm.size(), " ranks of ", gate_up_EFD.size(0), " experts");
}

}  // namespace

at::Tensor sharded_experts(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                           const ExpertSlots& slots, Communicator& comm) {
  check_shard(hidden_TD, gate_up_EFD, down_EDF, slots, comm);
  return ShardedExpertsFunction::apply(hidden_TD, gate_up_EFD, down_EDF, slots.weight_A, slots.token_A,
                                       make_exchange(slots.offsets_E, comm));
}

at::Tensor sharded_experts_reference(const at::Tensor& hidden_TD, const at::Tensor& gate_up_EFD, const at::Tensor& down_EDF,
                                     const ExpertSlots& slots, Communicator& comm) {
  check_shard(hidden_TD, gate_up_EFD, down_EDF, slots, comm);
  const Exchange exchange = make_exchange(slots.offsets_E, comm);
  const at::ScalarType wide = wide_type(hidden_TD.scalar_type());
  const at::Tensor rows_AD =
      TravelFunction::apply(at::index_select(hidden_TD, 0, slots.token_A), exchange->to_R, exchange->from_R, exchange);
  // On the owner each row that came is a token with one slot of weight 1.
  const at::Tensor offsets_E = at::empty({std::ssize(exchange->offsets)}, at::kLong);
  std::copy(exchange->offsets.begin(), exchange->offsets.end(), offsets_E.mutable_data_ptr<int64_t>());
  const ExpertSlots own{exchange->by_expert_A, at::ones({rows_AD.size(0)}, wide), offsets_E};
  const at::Tensor out_AD = TravelFunction::apply(grouped_experts_reference(rows_AD, gate_up_EFD, down_EDF, own),
                                                  exchange->from_R, exchange->to_R, exchange);
  const at::Tensor zeros_TD = at::zeros(hidden_TD.sizes(), wide);
  return at::index_add(zeros_TD, 0, slots.token_A, out_AD.to(wide).mul(slots.weight_A.unsqueeze(1))).to(hidden_TD.scalar_type());
}

}  // namespace switchyard
