#include "switchyard/core/routing.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/zeros.h>

#include <vector>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

void check_top_k(const at::Tensor& ids_TK, const at::Tensor& weights_TK, int64_t num_experts) {
  SWITCHYARD_CHECK(num_experts >= 1, ShapeError, "routing: ", num_experts, " experts; expected at least 1");
  SWITCHYARD_CHECK(ids_TK.defined() && ids_TK.dim() == 2 && ids_TK.scalar_type() == at::kLong, ShapeError,
                   "routing: ids_TK must be an int64 tensor [T, K]");
  SWITCHYARD_CHECK(weights_TK.defined() && weights_TK.sizes() == ids_TK.sizes() && weights_TK.is_floating_point(),
                   ShapeError, "routing: weights_TK must be a floating-point tensor of the shape of ids_TK, ",
                   ids_TK.sizes());
  SWITCHYARD_CHECK(weights_TK.device() == ids_TK.device(), ShapeError, "routing: ids_TK is on ", ids_TK.device(),
                   ", weights_TK on ", weights_TK.device());
}

// Fills offsets (E + 1 entries) and returns the number of slots.
int64_t count_slots(const at::Tensor& ids_TK, int64_t num_experts, int64_t* offsets) {
  const int64_t num_chosen = ids_TK.size(1);
  const int64_t* ids = ids_TK.const_data_ptr<int64_t>();
  for (int64_t token = 0; token < ids_TK.size(0); ++token) {
    const int64_t* row = ids + token * num_chosen;
    for (int64_t k = 0; k < num_chosen; ++k) {
      SWITCHYARD_CHECK(row[k] >= -1 && row[k] < num_experts, ShapeError, "routing: token ", token, " chose expert ",
                       row[k], "; expected -1 (padding) to ", num_experts - 1);
      SWITCHYARD_CHECK((row[k] < 0) == (row[0] < 0), ShapeError, "routing: token ", token,
                       " has some of its experts -1; a padding token has all of them -1");
      if (row[k] >= 0) ++offsets[row[k] + 1];
    }
  }
  for (int64_t expert = 0; expert < num_experts; ++expert) offsets[expert + 1] += offsets[expert];
  return offsets[num_experts];
}

}  // namespace

Routing routing_from_top_k(const at::Tensor& ids_TK, const at::Tensor& weights_TK, int64_t num_experts) {
  check_top_k(ids_TK, weights_TK, num_experts);
  const at::Tensor host_ids_TK = ids_TK.to(at::kCPU).contiguous();
  const int64_t num_chosen = ids_TK.size(1);
  at::Tensor offsets_E = at::zeros({num_experts + 1}, at::kLong);
  const int64_t num_slots = count_slots(host_ids_TK, num_experts, offsets_E.mutable_data_ptr<int64_t>());

  at::Tensor token_A = at::empty({num_slots}, at::kLong);
  at::Tensor expert_A = at::empty({num_slots}, at::kLong);
  at::Tensor source_A = at::empty({num_slots}, at::kLong);
  const int64_t* ids = host_ids_TK.const_data_ptr<int64_t>();
  const int64_t* offsets = offsets_E.const_data_ptr<int64_t>();
  int64_t* tokens = token_A.mutable_data_ptr<int64_t>();
  int64_t* experts = expert_A.mutable_data_ptr<int64_t>();
  int64_t* sources = source_A.mutable_data_ptr<int64_t>();
  std::vector<int64_t> next_slot(offsets, offsets + num_experts);
  for (int64_t source = 0; source < host_ids_TK.numel(); ++source) {
    const int64_t expert = ids[source];
    if (expert < 0) continue;
    const int64_t slot = next_slot[static_cast<size_t>(expert)]++;
    tokens[slot] = source / num_chosen;
    experts[slot] = expert;
    sources[slot] = source;
  }

  Routing routing;
  routing.token_A = token_A.to(ids_TK.device());
  routing.expert_A = expert_A.to(ids_TK.device());
  routing.offsets_E = offsets_E.to(ids_TK.device());
  routing.weight_A = at::index_select(weights_TK.reshape({-1}), 0, source_A.to(ids_TK.device()));
  routing.ids_TK = ids_TK;
  const bool padded = num_slots < ids_TK.numel();
  routing.weights_TK = padded ? weights_TK.masked_fill(ids_TK.lt(0), 0.0) : weights_TK;
  routing.num_tokens = ids_TK.size(0);
  routing.num_experts = num_experts;
  return routing;
}

ExpertCounts count_experts(const Routing& routing, const at::Tensor& group_T, int64_t num_groups) {
  SWITCHYARD_CHECK(group_T.defined() && group_T.dim() == 1 && group_T.scalar_type() == at::kLong &&
                       group_T.size(0) == routing.num_tokens,
                   ShapeError, "count_experts: group_T must be an int64 tensor of the routing's ", routing.num_tokens,
                   " tokens");
  SWITCHYARD_CHECK(num_groups >= 1, ShapeError, "count_experts: ", num_groups, " groups; expected at least 1");
  for (const at::Tensor& slots_A : {routing.token_A, routing.expert_A}) {
    SWITCHYARD_CHECK(slots_A.defined() && slots_A.dim() == 1 && slots_A.scalar_type() == at::kLong &&
                         slots_A.size(0) == routing.token_A.size(0),
                     ShapeError, "count_experts: token_A and expert_A of the routing must be int64 tensors [A] of one length");
  }
  const at::Tensor host_group_T = group_T.to(at::kCPU).contiguous();
  const at::Tensor host_token_A = routing.token_A.to(at::kCPU).contiguous();
  const at::Tensor host_expert_A = routing.expert_A.to(at::kCPU).contiguous();
  at::Tensor counts_GE = at::zeros({num_groups, routing.num_experts}, at::kLong);
  at::Tensor tokens_G = at::zeros({num_groups}, at::kLong);
  const int64_t* groups = host_group_T.const_data_ptr<int64_t>();
  int64_t* counts = counts_GE.mutable_data_ptr<int64_t>();
  int64_t* valid = tokens_G.mutable_data_ptr<int64_t>();
  for (int64_t token = 0; token < routing.num_tokens; ++token) {
    SWITCHYARD_CHECK(groups[token] >= -1 && groups[token] < num_groups, ShapeError, "count_experts: token ", token,
                     " is in group ", groups[token], "; expected -1 (padding) to ", num_groups - 1);
    if (groups[token] >= 0) ++valid[groups[token]];
  }
  const int64_t* tokens = host_token_A.const_data_ptr<int64_t>();
  const int64_t* experts = host_expert_A.const_data_ptr<int64_t>();
  for (int64_t slot = 0; slot < host_token_A.numel(); ++slot) {
    const int64_t token = tokens[slot];
    const int64_t expert = experts[slot];
    SWITCHYARD_CHECK(token >= 0 && token < routing.num_tokens && expert >= 0 && expert < routing.num_experts,
                     ShapeError, "count_experts: slot ", slot, " holds token ", token, " and expert ", expert, " of ",
                     routing.num_tokens, " and ", routing.num_experts);
    SWITCHYARD_CHECK(groups[token] >= 0, ShapeError, "count_experts: padding token ", token, " has a slot");
    ++counts[groups[token] * routing.num_experts + expert];
  }
  return {counts_GE.to(group_T.device()), tokens_G.to(group_T.device())};
}

}  // namespace switchyard
