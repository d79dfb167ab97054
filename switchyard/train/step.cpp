#include "switchyard/train/step.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full_like.h>

#include <cmath>
#include <utility>

#include "switchyard/balance/parameter_loss.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/train/replay.hpp"

namespace switchyard {
namespace {

/// One step under way.
class StepRunner {
 public:
  StepRunner(Decoder& model, const BalanceConfig& config, const BalanceState& state, std::vector<Batch> forwards,
             StepPlan plan, const StepOptions& options, uint64_t seed)
      : model_(model), forwards_(std::move(forwards)), plan_(std::move(plan)), options_(options), seed_(seed),
        balance_(config, {model.num_moe_layers(), model.config().num_experts, model.config().num_chosen}, plan_, state),
        whole_step_(balance_.needs_whole_step()), offsets_LE_(state.selection_offsets_LE),
        selection_score_(selection_score(config.selection.rule)) {
    for (const Batch& batch : forwards_) {
      result_.tokens += batch.num_valid_tokens();
      result_.targets += batch.num_targets();
      first_tokens_.push_back(next_token_);
      next_token_ += batch.ids_BS.numel();
    }
  }

  StepResult run(BalanceState& state) {
    SWITCHYARD_CHECK(result_.targets > 0, DataError, "step ", plan_.step, " has no scored target; expected at least one");
    model_.clear_gradients();
    if (!whole_step_) {
      run_forward_by_forward();
    } else if (options_.exact == ExactOrder::Prepass) {
      count_ahead();
      run_forward_by_forward();
    } else {
      run_all_forwards_first();
    }
    result_.loss = loss_sum_ / static_cast<double>(result_.targets);
    result_.balance = balance_.values();
    result_.step_counts_LE = balance_.step_counts_LE();
    result_.micro_batch_counts_MLE = balance_.micro_batch_counts_MLE();
    result_.lacks_history = balance_.lacks_history();
    result_.replay_differences = recorder_.differences();
    balance_.finish(state);
    return std::move(result_);
  }

 private:
  [[nodiscard]] size_t num_forwards() const { return forwards_.size(); }

  ForwardContext context_of(size_t index, RoutingPhase phase) {
    ForwardContext context;
    context.phase = phase;
    context.seed = seed_;
    context.step = plan_.step;
    context.forward = static_cast<int64_t>(index);
    context.first_token = first_tokens_[index];
    context.balance = &balance_;
    context.selection_offsets_LE = offsets_LE_;
    context.selection_score = selection_score_;
    const bool layers = options_.recompute == Recompute::Layers || (whole_step_ && options_.exact == ExactOrder::Recompute);
    context.recompute = layers && phase == RoutingPhase::Train ? Recompute::Layers : Recompute::None;
    return context;
  }

  at::Tensor hidden_TD(size_t index, const ForwardContext& context) {
    if (options_.before_forward) options_.before_forward(context.phase, context.forward);
    return model_.forward(forwards_[index], context);
  }

  /// @return sum of cross-entropies of the forward, with autograd
  at::Tensor train_forward(size_t index) {
    ForwardContext context = context_of(index, RoutingPhase::Train);
    if (recorder_.has(index)) recorder_.replay(index, context);
    const at::Tensor hidden = hidden_TD(index, context);
    if (!counted_ahead_) balance_.close_forward(static_cast<int64_t>(index));  // the loss hides the counts' way to other ranks
    at::Tensor loss = model_.loss_sum(hidden, forwards_[index].targets_BS.reshape({-1}));
    const double value = loss.item<double>();
    SWITCHYARD_CHECK(std::isfinite(value), StateError, "the loss of step ", plan_.step, ", forward ", index, " is ", value,
                     "; expected a finite number. Lower the learning rate, or look for bad values in the weights");
    loss_sum_ += value;
    return loss;
  }

  void backward(const at::Tensor& loss) {
    loss.backward(at::full_like(loss.detach(), 1.0 / static_cast<double>(result_.targets)));
    model_.collect_gradients();
  }

  /// Coefficients are known as soon as a forward is closed, or were counted ahead.
  void run_forward_by_forward() {
    for (size_t i = 0; i < num_forwards(); ++i) {
      const at::Tensor loss = train_forward(i);
      if (!counted_ahead_) await(i);
      backward(loss);
    }
  }

  void run_all_forwards_first() {
    std::vector<at::Tensor> losses;
    for (size_t i = 0; i < num_forwards(); ++i) {
      losses.push_back(train_forward(i));
      await(i);
    }
    for (at::Tensor& loss : losses) {
      backward(loss);
      loss.reset();  // frees the activations of this forward before the next backward
    }
  }

  void count_ahead() {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < num_forwards(); ++i) {
      ForwardContext context = context_of(i, RoutingPhase::Count);
      if (options_.on_replay_mismatch == OnReplayMismatch::Replay) recorder_.record(i, context);
      (void)hidden_TD(i, context);
      balance_.close_forward(static_cast<int64_t>(i));
      await(i);
    }
    counted_ahead_ = true;
  }

  void await(size_t index) {
    balance_.await_forward(static_cast<int64_t>(index));
    if (index + 1 == num_forwards()) balance_.close_counting();
  }

  Decoder& model_;
  std::vector<Batch> forwards_;
  StepPlan plan_;
  const StepOptions& options_;
  uint64_t seed_;
  StepBalance balance_;
  bool whole_step_;
  bool counted_ahead_ = false;
  at::Tensor offsets_LE_;
  SelectionScore selection_score_;
  ChoiceRecorder recorder_;
  std::vector<int64_t> first_tokens_;
  int64_t next_token_ = 0;
  double loss_sum_ = 0.0;
  StepResult result_;
};

/// Losses of weights alone: once a step, after everything else is in the gradients.
void add_parameter_losses(Decoder& model, const BalanceConfig& config, StepResult& result) {
  if (config.simbal_coefficient == 0.0) return;
  const double share = config.layers == LayerReduction::Mean ? 1.0 / static_cast<double>(model.num_moe_layers()) : 1.0;
  for (Parameter* weight : model.router_weights()) {
    const ParameterLoss loss = simbal_loss(weight->master);
    const at::Tensor gradient_ED = loss.gradient_ED.mul(share * config.simbal_coefficient);
    weight->grad = weight->grad.defined() ? weight->grad.add_(gradient_ED) : gradient_ED;
    result.simbal_L.push_back(loss.value);
    result.balance.weighted_loss += share * config.simbal_coefficient * loss.value;
  }
}

}  // namespace

SelectionScore selection_score(SelectionRule rule) {
  const bool logits = rule == SelectionRule::Quantile || rule == SelectionRule::MeanQuantile;
  return logits ? SelectionScore::Logits : SelectionScore::Probs;
}

std::vector<Batch> pack_forwards(const std::vector<Batch>& micro_batches, ForwardPacking packing) {
  SWITCHYARD_CHECK(!micro_batches.empty(), UsageError, "a step needs at least one micro-batch; given none");
  if (packing == ForwardPacking::Separate) return micro_batches;
  return {join_batches(micro_batches)};
}

StepPlan make_step_plan(int64_t step, const std::vector<Batch>& forwards, int64_t num_micro_batches) {
  StepPlan plan;
  plan.step = step;
  plan.num_micro_batches = num_micro_batches;
  plan.forward_begin.push_back(0);
  for (const Batch& batch : forwards) {
    plan.segment_tokens.insert(plan.segment_tokens.end(), batch.segment_tokens.begin(), batch.segment_tokens.end());
    plan.segment_micro_batch.insert(plan.segment_micro_batch.end(), batch.segment_micro_batch.begin(),
                                    batch.segment_micro_batch.end());
    plan.forward_begin.push_back(static_cast<int64_t>(plan.segment_tokens.size()));
  }
  return plan;
}

StepResult run_step(Decoder& model, const BalanceConfig& config, BalanceState& state,
                    const std::vector<Batch>& micro_batches, const StepOptions& options, uint64_t seed, int64_t step) {
  std::vector<Batch> forwards = pack_forwards(micro_batches, options.forward);
  StepPlan plan = make_step_plan(step, forwards, static_cast<int64_t>(micro_batches.size()));
  StepResult result = StepRunner(model, config, state, std::move(forwards), std::move(plan), options, seed).run(state);
  add_parameter_losses(model, config, result);
  return result;
}

}  // namespace switchyard
