#include "switchyard/measure/routing_tally.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <tuple>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

at::Tensor checked_labels(const at::Tensor& labels_T, const char* name, int64_t num_tokens, int64_t end) {
  SWITCHYARD_CHECK(labels_T.defined() && labels_T.dim() == 1 && labels_T.scalar_type() == at::kLong, ShapeError,
                   "routing tally: ", name, " must be an int64 tensor [T]");
  SWITCHYARD_CHECK(labels_T.size(0) == num_tokens, ShapeError, "routing tally: ", name, " has ", labels_T.size(0),
                   " entries for ", num_tokens, " tokens");
  const at::Tensor host_T = labels_T.to(at::kCPU).contiguous();
  const int64_t* labels = host_T.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < num_tokens; ++t) {
    SWITCHYARD_CHECK(labels[t] >= -1 && labels[t] < end, ShapeError, "routing tally: token ", t, " has ", name, " ",
                     labels[t], "; expected -1 (padding) to ", end - 1);
  }
  return host_T;
}

// Without ids_TK the best expert of a token is its slot of the largest weight, of the lowest expert among equal ones.
void count_heaviest_slots(std::span<const int64_t> tokens, std::span<const int64_t> experts, const float* weights,
                          std::span<const int64_t> document_T, Matrix<int64_t>& first_choice_XE) {
  std::vector<int64_t> best_T(document_T.size(), -1);
  for (size_t slot = 0; slot < tokens.size(); ++slot) {
    int64_t& best = best_T[static_cast<size_t>(tokens[slot])];
    if (best < 0 || weights[slot] > weights[best]) best = static_cast<int64_t>(slot);
  }
  for (size_t t = 0; t < best_T.size(); ++t) {
    if (best_T[t] >= 0) ++first_choice_XE(document_T[t], experts[static_cast<size_t>(best_T[t])]);
  }
}

void count_first_ids(const at::Tensor& ids_TK, std::span<const int64_t> document_T, Matrix<int64_t>& first_choice_XE) {
  const at::Tensor host_TK = ids_TK.to(at::kCPU).contiguous();
  SWITCHYARD_CHECK(host_TK.dim() == 2 && host_TK.scalar_type() == at::kLong && host_TK.size(1) >= 1 &&
                       host_TK.size(0) == static_cast<int64_t>(document_T.size()),
                   ShapeError, "routing tally: ids_TK has the sizes ", ids_TK.sizes(), "; expected int64 [",
                   document_T.size(), ", K]");
  const int64_t* ids = host_TK.const_data_ptr<int64_t>();
  for (size_t t = 0; t < document_T.size(); ++t) {
    const int64_t expert = ids[static_cast<int64_t>(t) * host_TK.size(1)];
    SWITCHYARD_CHECK((expert >= 0) == (document_T[t] >= 0) && expert < first_choice_XE.columns(), ShapeError,
                     "routing tally: token ", t, " has the first choice ", expert, "; expected 0 to ",
                     first_choice_XE.columns() - 1, ", or -1 for a padding token");
    if (expert >= 0) ++first_choice_XE(document_T[t], expert);
  }
}

void add_margins(const at::Tensor& probs_TE, int64_t num_chosen, std::span<const int64_t> document_T, LayerTally& tally) {
  const at::NoGradGuard no_grad;
  const at::Tensor top_TK = std::get<0>(at::topk(probs_TE.detach(), num_chosen + 1, 1)).to(at::kCPU).to(at::kDouble)
                                .contiguous();
  const double* top = top_TK.const_data_ptr<double>();
  for (size_t t = 0; t < document_T.size(); ++t) {
    if (document_T[t] < 0) continue;
    const double* row = top + static_cast<int64_t>(t) * (num_chosen + 1);
    // topk puts NaN first, so it shows in one of the first places.
    const double margin = row[num_chosen - 1] - row[num_chosen];
    SWITCHYARD_CHECK(std::isfinite(row[0]) && std::isfinite(margin), ShapeError, "routing tally: token ", t,
                     " has probabilities that are not finite. Training has diverged, or an input is not finite");
    tally.margin_sum += margin;
    ++tally.margin_tokens;
  }
}

}  // namespace

RoutingTally::RoutingTally(const TallyShape& shape) : shape_(shape) {
  SWITCHYARD_CHECK(shape.num_layers >= 1 && shape.num_domains >= 1 && shape.num_experts >= 1 && shape.num_chosen >= 1 &&
                       shape.num_chosen <= shape.num_experts,
                   ShapeError, "routing tally of ", shape.num_layers, " layers, ", shape.num_domains, " domains, ",
                   shape.num_experts, " experts, ", shape.num_chosen, " chosen; expected at least 1 each and K <= E");
  layers_.resize(static_cast<size_t>(shape.num_layers));
  for (LayerTally& layer : layers_) {
    layer.slots_XE = Matrix<int64_t>(0, shape.num_experts);
    layer.first_choice_XE = Matrix<int64_t>(0, shape.num_experts);
  }
  layer_done_L_.assign(layers_.size(), 1);
}

void RoutingTally::check_complete() const {
  const auto missing = std::find(layer_done_L_.begin(), layer_done_L_.end(), 0);
  SWITCHYARD_CHECK(missing == layer_done_L_.end(), StateError, "routing tally: the last batch has no routing of MoE layer ",
                   missing - layer_done_L_.begin(), "; call add() for each layer after begin_batch()");
}

const std::vector<LayerTally>& RoutingTally::layers() const {
  check_complete();
  return layers_;
}

int64_t RoutingTally::find_document(int64_t number, int64_t domain, int64_t token) {
  const auto [found, is_new] = document_index_.try_emplace(number, num_documents());
  if (is_new) {
    domain_X_.push_back(domain);
    for (LayerTally& layer : layers_) {
      layer.slots_XE.add_row();
      layer.first_choice_XE.add_row();
    }
  }
  const int64_t known = domain_X_[static_cast<size_t>(found->second)];
  SWITCHYARD_CHECK(known == domain, DataError, "routing tally: document ", number, " is of domain ", known,
                   ", but its token ", token, " of this batch is of domain ", domain);
  return found->second;
}

void RoutingTally::begin_batch(const TokenLabels& labels) {
  check_complete();
  constexpr int64_t kNoEnd = std::numeric_limits<int64_t>::max();
  SWITCHYARD_CHECK(labels.domain_T.defined(), ShapeError, "routing tally: domain_T must be an int64 tensor [T]");
  const int64_t num_tokens = labels.domain_T.numel();
  const at::Tensor domain_T = checked_labels(labels.domain_T, "domain_T", num_tokens, shape_.num_domains);
  const at::Tensor document_T = checked_labels(labels.document_T, "document_T", num_tokens, kNoEnd);
  const at::Tensor micro_batch_T = labels.micro_batch_T.defined()
                                       ? checked_labels(labels.micro_batch_T, "micro_batch_T", num_tokens, kNoEnd)
                                       : at::Tensor();
  const int64_t* domains = domain_T.const_data_ptr<int64_t>();
  const int64_t* documents = document_T.const_data_ptr<int64_t>();
  const int64_t* micro_batches = micro_batch_T.defined() ? micro_batch_T.const_data_ptr<int64_t>() : nullptr;

  document_T_.assign(static_cast<size_t>(num_tokens), -1);
  micro_batch_T_.assign(static_cast<size_t>(num_tokens), 0);
  num_micro_batches_ = 0;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const bool padding = domains[t] < 0;
    SWITCHYARD_CHECK(padding == (documents[t] < 0) && (micro_batches == nullptr || padding == (micro_batches[t] < 0)),
                     ShapeError, "routing tally: token ", t, " is padding (-1) in some labels only");
    if (padding) continue;
    const auto at = static_cast<size_t>(t);
    // A document is a run of tokens, so the map is asked once a run.
    const bool same_run = t > 0 && documents[t] == documents[t - 1] && domains[t] == domains[t - 1];
    document_T_[at] = same_run ? document_T_[at - 1] : find_document(documents[t], domains[t], t);
    if (micro_batches != nullptr) micro_batch_T_[at] = micro_batches[t];
    num_micro_batches_ = std::max(num_micro_batches_, micro_batch_T_[at] + 1);
  }
  SWITCHYARD_CHECK(num_micro_batches_ <= std::max<int64_t>(num_tokens, 1), ShapeError, "routing tally: micro-batch ",
                   num_micro_batches_ - 1, " in a batch of ", num_tokens, " tokens; number them from 0");
  layer_done_L_.assign(layers_.size(), 0);
}

void RoutingTally::skip_batch(const TokenLabels& labels) {
  begin_batch(labels);
  layer_done_L_.assign(layers_.size(), 1);
}

void RoutingTally::sum_over(Communicator& comm) {
  check_complete();
  require_equal(comm, "number of documents in a routing tally", num_documents());
  for (LayerTally& layer : layers_) {
    comm.all_reduce_sum(layer.slots_XE.values());
    comm.all_reduce_sum(layer.first_choice_XE.values());
    comm.all_reduce_sum(std::span(&layer.margin_sum, 1));
    comm.all_reduce_sum(std::span(&layer.margin_tokens, 1));
    const std::vector<std::vector<LoadMetrics>> lists_R = all_gather_lists<LoadMetrics>(comm, layer.micro_batches);
    layer.micro_batches.clear();
    for (const std::vector<LoadMetrics>& list : lists_R) {
      layer.micro_batches.insert(layer.micro_batches.end(), list.begin(), list.end());
    }
  }
}

void RoutingTally::add(int64_t layer, const Routing& routing) {
  SWITCHYARD_CHECK(layer >= 0 && layer < shape_.num_layers, ShapeError, "routing tally: MoE layer ", layer,
                   "; expected 0 to ", shape_.num_layers - 1);
  const auto index = static_cast<size_t>(layer);
  SWITCHYARD_CHECK(layer_done_L_[index] == 0, StateError, "routing tally: MoE layer ", layer,
                   " was added already; call begin_batch() before each forward");
  const auto num_tokens = static_cast<int64_t>(document_T_.size());
  SWITCHYARD_CHECK(routing.num_tokens == num_tokens && routing.num_experts == shape_.num_experts, ShapeError,
                   "routing tally: a routing of ", routing.num_tokens, " tokens over ", routing.num_experts,
                   " experts; expected ", num_tokens, " and ", shape_.num_experts);
  LayerTally& tally = layers_[index];
  const at::Tensor token_A = routing.token_A.to(at::kCPU).contiguous();
  const at::Tensor expert_A = routing.expert_A.to(at::kCPU).contiguous();
  const auto num_slots = static_cast<size_t>(token_A.numel());
  const std::span<const int64_t> tokens(token_A.const_data_ptr<int64_t>(), num_slots);
  const std::span<const int64_t> experts(expert_A.const_data_ptr<int64_t>(), num_slots);

  Matrix<int64_t> counts_ME(num_micro_batches_, shape_.num_experts);
  for (size_t slot = 0; slot < num_slots; ++slot) {
    SWITCHYARD_CHECK(tokens[slot] >= 0 && tokens[slot] < num_tokens && experts[slot] >= 0 &&
                         experts[slot] < shape_.num_experts,
                     ShapeError, "routing tally: slot ", slot, " is token ", tokens[slot], ", expert ", experts[slot]);
    const auto token = static_cast<size_t>(tokens[slot]);
    SWITCHYARD_CHECK(document_T_[token] >= 0, ShapeError, "routing tally: padding token ", token, " has a slot");
    ++tally.slots_XE(document_T_[token], experts[slot]);
    ++counts_ME(micro_batch_T_[token], experts[slot]);
  }
  for (int64_t m = 0; m < num_micro_batches_; ++m) {
    const LoadMetrics metrics = load_metrics(counts_ME.row(m));
    if (metrics.utilization > 0.0) tally.micro_batches.push_back(metrics);  // 0: no slots
  }
  if (routing.ids_TK.defined()) {
    count_first_ids(routing.ids_TK, document_T_, tally.first_choice_XE);
  } else {
    const at::Tensor weight_A = routing.weight_A.detach().to(at::kCPU).to(at::kFloat).contiguous();
    count_heaviest_slots(tokens, experts, weight_A.const_data_ptr<float>(), document_T_, tally.first_choice_XE);
  }
  if (routing.probs_TE.defined() && shape_.num_chosen < shape_.num_experts) {
    add_margins(routing.probs_TE, shape_.num_chosen, document_T_, tally);
  }
  layer_done_L_[index] = 1;
}

}  // namespace switchyard
