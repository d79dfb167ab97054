#pragma once
// The Qwen3-MoE decoder: embedding, layers of attention and experts, final norm, head. B rows, S positions, T = B * S,
// D width, V vocabulary.

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/comm/communicator.hpp"
#include "switchyard/data/batch.hpp"
#include "switchyard/model/config.hpp"
#include "switchyard/router/router.hpp"

namespace switchyard {

/// A weight under its Hugging Face name; the tensor may be a part of a larger parameter.
struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// What a forward needs beside tokens and weights.
struct ForwardContext {
  RoutingPhase phase = RoutingPhase::Train;
  uint64_t seed = 0;
  int64_t step = 0;
  int64_t forward = 0;             // index within the step, key of the ledger
  int64_t first_token = 0;         // of this forward within the step
  Recompute recompute = Recompute::None;
  at::Tensor position_T{};         // number of each token within the step, where they are not consecutive; undefined: they are
  StepBalance* balance = nullptr;  // null: neither loss nor counts
  at::Tensor selection_offsets_LE{};  // of BalanceState; undefined: none
  SelectionScore selection_score = SelectionScore::Probs;
  /// Called once per MoE layer with what the router did; under recomputation only in the first run. May be empty.
  std::function<void(int64_t moe_layer, const Routing& routing)> observe;
  /// Choices to use instead of new ones, one ids_TK per MoE layer; empty: choose.
  std::vector<at::Tensor> replay_ids_LTK;
};

class Decoder {
 public:
  /// Weights are drawn from the streams of `seed`; `compute` must not be Auto (compute_type.hpp resolves it).
  /// @param expert_ranks  ranks that divide the experts among them (Parameter::shard): then every forward and backward is
  ///                      collective. Outlives the decoder; null: all experts are here
  /// @throws ConfigError unless the ranks divide the experts
  Decoder(const ModelConfig& config, ComputeType compute, int64_t num_domains, uint64_t seed,
          Communicator* expert_ranks = nullptr);
  ~Decoder();
  Decoder(Decoder&&) noexcept;

  /// @return final normed hidden states [T, D] in the compute type, with autograd unless grad mode is off
  [[nodiscard]] at::Tensor forward(const Batch& batch, const ForwardContext& context);

  /// Sum over scored targets of the cross-entropy in nats, fp32 (double for Float64), never materialising full logits.
  [[nodiscard]] at::Tensor loss_sum(const at::Tensor& hidden_TD, const at::Tensor& targets_T);
  /// Cross-entropy of each token in nats, [T], 0 where the target is ignored; no autograd.
  [[nodiscard]] at::Tensor token_losses(const at::Tensor& hidden_TD, const at::Tensor& targets_T);
  /// fp32 logits [T, V]; for tests and export checks.
  [[nodiscard]] at::Tensor logits_TV(const at::Tensor& hidden_TD);

  [[nodiscard]] const ModelConfig& config() const;
  [[nodiscard]] ComputeType compute_type() const;
  [[nodiscard]] int64_t num_moe_layers() const;
  /// Ranks that divide the experts among them; 1: all experts are here.
  [[nodiscard]] int64_t num_expert_ranks() const;

  /// All weights in a fixed order; frozen router weights included. Stacked ones have a name of their own
  /// ("...mlp.experts.gate_up_proj" [E, 2F, D], "...mlp.experts.down_proj" [E, D, F], "...self_attn.qkv_proj.weight").
  /// Masters are changed in place only (set_master() in weights.hpp): what computes is the same storage, or their upper half.
  [[nodiscard]] ParameterRefs parameters();
  /// The matrices that score experts, [E, D], of the MoE layers that train one.
  [[nodiscard]] ParameterRefs router_weights();
  /// The masters under the names and shapes of Hugging Face: stacked parameters (experts, QKV, gate and up) taken apart; of divided
  /// experts those of this rank. To be read: masters kept in halves are joined for it.
  [[nodiscard]] std::vector<NamedTensor> named_weights() const;
  /// fill(target) writes each of them, all elements; then the model takes them. Nothing changes when it throws.
  void set_named_weights(const std::function<void(const NamedTensor& target)>& fill);
  /// Moves the gradients of what computes to Parameter::grad, or adds them in fp32 to what is there. Call after each backward.
  void collect_gradients();
  void clear_gradients();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
