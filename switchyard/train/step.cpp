#include "switchyard/train/step.hpp"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>

#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "switchyard/balance/parameter_loss.hpp"
#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/replay.hpp"

namespace switchyard {
namespace {

/// The domain of each segment's first token, -1 where it has none.
std::vector<int64_t> segment_domains(const Batch& batch) {
  std::vector<int64_t> domains(batch.segment_tokens.size(), -1);
  const at::Tensor segment_T = batch.segment_T.contiguous();
  const at::Tensor domain_T = batch.domain_T.contiguous();
  const int64_t* segments = segment_T.const_data_ptr<int64_t>();
  const int64_t* labels = domain_T.const_data_ptr<int64_t>();
  for (int64_t t = segment_T.numel() - 1; t >= 0; --t) {
    if (segments[t] >= 0) domains[static_cast<size_t>(segments[t])] = labels[t];
  }
  return domains;
}

/// What a rank must know of the others' tokens before its first forward.
struct StepTokens {
  int64_t targets = 0;                 // scored, over all ranks
  std::vector<at::Tensor> position_M;  // numbers within the step of the tokens of each of this rank's micro-batches
};

/// One small all-gather.
StepTokens gather_tokens(const std::vector<Batch>& micro_batches, Communicator& comm) {
  std::vector<int64_t> mine = {0};  // scored targets, then the tokens of each micro-batch
  for (const Batch& batch : micro_batches) {
    mine[0] += batch.num_targets();
    mine.push_back(batch.ids_BS.numel());
  }
  const auto num_ranks = static_cast<size_t>(comm.size()), own = static_cast<size_t>(comm.rank());
  std::vector<int64_t> all(mine.size() * num_ranks);
  comm.all_gather(mine, all);
  StepTokens tokens;
  for (size_t rank = 0; rank < num_ranks; ++rank) tokens.targets += all[rank * mine.size()];
  int64_t position = 0;
  for (size_t m = 1; m < mine.size(); ++m) {
    for (size_t rank = 0; rank < num_ranks; ++rank) {
      const int64_t size = all[rank * mine.size() + m];
      if (rank == own) tokens.position_M.push_back(at::arange(position, position + size, at::kLong));
      position += size;
    }
  }
  return tokens;
}

/// One step under way.
class StepRunner {
 public:
  StepRunner(Decoder& model, const BalanceConfig& config, const BalanceState& state, const std::vector<Batch>& micro_batches,
             const ExecutionConfig& execution, uint64_t seed, int64_t step, const BalanceRanks& ranks,
             const ForwardHook& before_forward)
      : model_(model), forwards_(pack_forwards(micro_batches, execution.forward)),
        plan_(make_step_plan(step, forwards_, static_cast<int64_t>(micro_batches.size()))), execution_(execution), seed_(seed),
        before_forward_(before_forward), comm_(ranks.comm),
        balance_(config, {model.num_moe_layers(), model.config().num_experts, model.config().num_chosen}, plan_, state, ranks),
        whole_step_(balance_.needs_whole_step()), offsets_LE_(state.selection_offsets_LE),
        selection_score_(selection_score(config.selection.rule)) {
    StepTokens tokens = gather_tokens(micro_batches, comm_);
    result_.tokens = balance_.step_tokens();
    result_.targets = tokens.targets;
    position_F_ = execution.forward == ForwardPacking::Separate ? std::move(tokens.position_M)
                                                              : std::vector{at::cat(tokens.position_M)};
  }

  StepResult run(BalanceState& state) {
    SWITCHYARD_CHECK(result_.targets > 0, DataError, "step ", plan_.step, " has no scored target; expected at least one");
    model_.clear_gradients();
    if (!whole_step_) {
      run_forward_by_forward();
    } else if (execution_.exact == ExactOrder::Prepass) {
      count_ahead();
      run_forward_by_forward();
    } else {
      run_all_forwards_first();
    }
    finish_sums();
    result_.balance = balance_.values();
    result_.step_counts_LE = balance_.step_counts_LE();
    result_.micro_batch_counts_MLE = balance_.micro_batch_counts_MLE();
    result_.lacks_history = balance_.lacks_history();
    balance_.finish(state);
    return std::move(result_);
  }

 private:
  [[nodiscard]] size_t num_forwards() const { return forwards_.size(); }

  void finish_sums() {
    std::array<double, 2> sums = {loss_sum_, static_cast<double>(recorder_.differences())};
    comm_.all_reduce_sum(std::span<double>(sums));
    if (!std::isfinite(sums[0])) throw_if_any(comm_, bad_loss_);
    result_.loss = sums[0] / static_cast<double>(result_.targets);
    result_.replay_differences = static_cast<int64_t>(sums[1]);
  }

  ForwardContext context_of(size_t index, RoutingPhase phase) {
    ForwardContext context;
    context.phase = phase;
    context.seed = seed_;
    context.step = plan_.step;
    context.forward = static_cast<int64_t>(index);
    context.position_T = position_F_[index];
    context.balance = &balance_;
    context.selection_offsets_LE = offsets_LE_;
    context.selection_score = selection_score_;
    const bool layers = execution_.recompute == Recompute::Layers || (whole_step_ && execution_.exact == ExactOrder::Recompute);
    context.recompute = layers && phase == RoutingPhase::Train ? Recompute::Layers : Recompute::None;
    return context;
  }

  at::Tensor hidden_TD(size_t index, const ForwardContext& context) {
    if (before_forward_) before_forward_(context.phase, context.forward);
    return model_.forward(forwards_[index], context);
  }

  /// @return what the head reads, with autograd
  at::Tensor train_hidden(size_t index) {
    ForwardContext context = context_of(index, RoutingPhase::Train);
    if (recorder_.has(index)) recorder_.replay(index, context);
    const at::Tensor hidden = hidden_TD(index, context);
    if (!counted_ahead_) balance_.close_forward(static_cast<int64_t>(index));
    return hidden;
  }

  /// @return sum of cross-entropies of the forward, with autograd
  at::Tensor loss_sum(size_t index, const at::Tensor& hidden) {
    at::Tensor loss = model_.loss_sum(hidden, forwards_[index].targets_BS.reshape({-1}));
    const double value = loss.item<double>();
    if (!std::isfinite(value)) take_bad_loss(index, value);
    loss_sum_ += value;
    return loss;
  }

  // With several ranks the others learn of it from the sum of the losses.
  void take_bad_loss(size_t index, double value) {
    const std::string problem = join_text("the loss of step ", plan_.step, ", forward ", index, " is ", value,
                                          "; expected a finite number. Lower the learning rate, or look for bad values in the "
                                          "weights");
    SWITCHYARD_CHECK(comm_.size() > 1, StateError, problem);
    if (bad_loss_.empty()) bad_loss_ = problem;
  }

  void backward(const at::Tensor& loss) {
    loss.backward(at::full_like(loss.detach(), 1.0 / static_cast<double>(result_.targets)));
    const PartScope part("gradients into fp32");
    model_.collect_gradients();
  }

  /// Coefficients are known as soon as a forward is closed, or were counted ahead.
  void run_forward_by_forward() {
    for (size_t i = 0; i < num_forwards(); ++i) {
      const at::Tensor loss = loss_sum(i, train_hidden(i));  // while the counts are under way to other ranks
      if (!counted_ahead_) await(i);
      backward(loss);
    }
  }

  /// The head waits too: its forward makes its gradient, D x V numbers, which must not lie there once for every forward.
  void run_all_forwards_first() {
    std::vector<at::Tensor> hidden;
    for (size_t i = 0; i < num_forwards(); ++i) {
      hidden.push_back(train_hidden(i));
      if (i > 0) await(i - 1);  // its counts were under way meanwhile
    }
    await(num_forwards() - 1);
    for (size_t i = 0; i < num_forwards(); ++i) {
      const at::Tensor loss = loss_sum(i, hidden[i]);
      hidden[i].reset();  // so that backward frees the activations as it goes
      backward(loss);
    }
  }

  void count_ahead() {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < num_forwards(); ++i) {
      ForwardContext context = context_of(i, RoutingPhase::Count);
      if (execution_.on_replay_mismatch == OnReplayMismatch::Replay) recorder_.record(i, context);
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
  const ExecutionConfig& execution_;
  uint64_t seed_;
  const ForwardHook& before_forward_;
  Communicator& comm_;
  StepBalance balance_;
  bool whole_step_;
  bool counted_ahead_ = false;
  at::Tensor offsets_LE_;
  SelectionScore selection_score_;
  ChoiceRecorder recorder_;
  std::vector<at::Tensor> position_F_;  // number of each token within the step
  double loss_sum_ = 0.0;               // of this rank
  std::string bad_loss_;                // of this rank, not yet told to the others
  StepResult result_;
};

}  // namespace

SelectionScore selection_score(SelectionRule rule) {
  const bool logits = rule == SelectionRule::Quantile || rule == SelectionRule::MeanQuantile;
  return logits ? SelectionScore::Logits : SelectionScore::Probs;
}

std::vector<Batch> share_of_rank(const std::vector<Batch>& micro_batches, int64_t rank, int64_t num_ranks) {
  const auto count = static_cast<int64_t>(micro_batches.size());
  SWITCHYARD_CHECK(num_ranks >= 1 && rank >= 0 && rank < num_ranks && count % num_ranks == 0, UsageError, "rank ", rank, " of ",
                   num_ranks, " cannot take its share of ", count, " micro-batches; expected a multiple of the ranks");
  std::vector<Batch> share;
  for (int64_t m = rank; m < count; m += num_ranks) {
    share.push_back(micro_batches[static_cast<size_t>(m)]);
    share.back().segment_micro_batch.assign(share.back().segment_tokens.size(), m / num_ranks);
  }
  return share;
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
    const std::vector<int64_t> domains = segment_domains(batch);
    plan.segment_domain.insert(plan.segment_domain.end(), domains.begin(), domains.end());
    plan.forward_begin.push_back(static_cast<int64_t>(plan.segment_tokens.size()));
  }
  return plan;
}

StepResult run_step(Decoder& model, const BalanceConfig& config, BalanceState& state,
                    const std::vector<Batch>& micro_batches, const ExecutionConfig& execution, uint64_t seed,
                    int64_t step, const BalanceRanks& ranks, const ForwardHook& before_forward) {
  return StepRunner(model, config, state, micro_batches, execution, seed, step, ranks, before_forward).run(state);
}

void add_parameter_losses(Decoder& model, const BalanceConfig& config, StepResult& result) {
  if (config.simbal_coefficient == 0.0) return;
  const double weight = per_layer(config.layers, config.simbal_coefficient, model.num_moe_layers());
  for (Parameter* router : model.router_weights()) {
    const ParameterLoss loss = simbal_loss(router->master);
    add_to_gradient(*router, loss.gradient_ED.mul(weight));
    result.simbal_L.push_back(loss.value);
    result.balance.weighted_loss += weight * loss.value;
  }
}

}  // namespace switchyard
