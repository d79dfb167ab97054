#include "switchyard/balance/step_balance.hpp"

#include <algorithm>
#include <exception>

#include "switchyard/balance/selection.hpp"
#include "switchyard/balance/step_cells.hpp"
#include "switchyard/balance/step_facts.hpp"
#include "switchyard/balance/term_balance.hpp"
#include "switchyard/balance/totals.hpp"
#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/profile_scope.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {
namespace {

constexpr const char* kPart = "balancing";
constexpr double kNotSeen = -1.0;  // of sums that are never negative

// One entry of the config from the first step to the last: lbl_L must not change its meaning where another entry takes over.
std::vector<double> first_lbl(const BalanceConfig& config, int64_t step, const std::vector<TermValues>& terms) {
  const auto is_lbl = [](const BalanceTerm& term) { return term.method == "lbl"; };
  const std::vector<BalanceTerm> configured = all_terms(config);
  const auto entry = std::ranges::find_if(configured, is_lbl);
  if (entry == configured.end() || !entry->active(step)) return {};
  return std::ranges::find_if(terms, is_lbl, &TermValues::term)->value_L;  // of the active ones it comes first
}

// A rank whose last forwards are empty cannot count the step's micro-batches; all ranks together can.
StepPlan with_micro_batches(StepPlan local, const GatheredPlan& gathered) {
  local.num_micro_batches = gathered.whole.micro_batch_count();
  return local;
}

}  // namespace

struct StepBalance::Impl {
  Impl(const BalanceConfig& given_config, const BalanceShape& given_shape, const StepPlan& local, const GatheredPlan& gathered,
       const BalanceState& state, const BalanceRanks& given_ranks)
      : config(given_config),
        shape(given_shape),
        plan(with_micro_batches(local, gathered)),
        ranks(given_ranks),
        totals(gathered, plan, shape, ranks.comm),
        selection(config.selection, shape, state),
        begun_with(facts_of(config, shape, local, state, {ranks.comm.size(), gathered.data_rank, gathered.replica})),
        cells(plan, shape, contract_factors(plan, {step_tokens(), totals.plan().num_ranks}), token_weights()),
        closed(static_cast<size_t>(plan.num_forwards()), false),
        awaited(closed),
        output_losses(static_cast<size_t>(plan.num_forwards() * shape.num_layers), kNotSeen) {
    for (const BalanceTerm& term : active_terms(config, plan.step)) {
      terms.push_back(std::make_unique<TermBalance>(term, config.weighting, of_a_layer(term.coefficient), shape,
                                                    state, totals));
      wanted.first_choices = wanted.first_choices || terms.back()->method().counted == Counted::FirstChoices;
      wanted.load = wanted.load || terms.back()->method().score == Score::Load;
      wanted.prob_squares = wanted.prob_squares || terms.back()->method().curvature != 0.0;
    }
    wanted.squared_lse = config.z_coefficient != 0.0;
    wanted.num_chosen = shape.num_chosen;
    totals.seal();
    cells.use(terms);
    fill_known();
  }

  [[nodiscard]] double of_a_layer(double coefficient) const {
    return per_layer(config.layers, coefficient, shape.layers_of_model());
  }
  [[nodiscard]] int64_t step_tokens() const { return totals.plan().whole.step_tokens(); }
  [[nodiscard]] TokenLossWeights token_weights() const {
    const auto tokens = static_cast<double>(std::max<int64_t>(step_tokens(), 1));
    return {.z = of_a_layer(config.z_coefficient) / tokens,
            .orthogonality = of_a_layer(config.orthogonality_coefficient) / tokens};
  }
  [[nodiscard]] bool many_ranks() const { return ranks.comm.size() > 1; }

  void check_forward(int64_t forward) const {
    SWITCHYARD_CHECK(forward >= 0 && forward < plan.num_forwards(), UsageError, "step ", plan.step, ": forward ", forward,
                     " of a plan with ", plan.num_forwards());
  }
  void check_place(int64_t forward, int64_t layer) const {
    check_forward(forward);
    SWITCHYARD_CHECK(layer >= 0 && layer < shape.num_layers, UsageError, "step ", plan.step, ": layer ", layer, " of ",
                     shape.num_layers, " MoE layers");
  }

  void fill_known();
  void record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T);
  void check_recorded(int64_t forward) const;
  // With several ranks a problem waits for the next collective call, so that all of them throw together.
  template <typename Part>
  void keep_problem(const Part& part);
  // What `part` makes of the argument of an identity; where it cannot and there are others, the argument, so that the forward goes
  // on to where all are told.
  template <typename Part>
  [[nodiscard]] at::Tensor through(const at::Tensor& argument, const Part& part) {
    at::Tensor result = argument;
    keep_problem([&] { result = part(); });
    return result;
  }
  void restore(const StepProgress& progress);
  [[nodiscard]] int64_t closed_hash() const {
    std::string text;
    for (const bool one : closed) text.push_back(one ? '1' : '0');
    return static_cast<int64_t>(hash_text(text));
  }
  [[nodiscard]] BalanceValues gather_values();

  BalanceConfig config;
  BalanceShape shape;
  StepPlan plan;
  std::unique_ptr<Communicator> own_comm;  // where none was given
  BalanceRanks ranks;
  StepTotals totals;
  SelectionStep selection;
  std::vector<AgreedFact> begun_with;
  StepCells cells;
  std::vector<std::unique_ptr<TermBalance>> terms;  // the active ones
  WantedStatistics wanted;
  std::vector<bool> closed;         // [F]
  std::vector<bool> awaited;        // [F]
  std::vector<double> output_losses;  // [F * L], sums over valid tokens
  std::string problem;              // of this rank, not yet told to the others
  bool counting_closed = false;
  at::Tensor counts_MLE;
  BalanceValues values;
};

void StepBalance::Impl::fill_known() {
  for (const auto& term : terms) term->update();
  cells.fill_known(terms);
}

void StepBalance::Impl::record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T) {
  cells.check_passed(forward, layer, routing, segment_T);
  SWITCHYARD_CHECK(routing.num_experts == shape.num_experts, ShapeError, plan.place(forward, layer), ": routing over ",
                   routing.num_experts, " experts; expected ", shape.num_experts);
  try {
    const SegmentStatistics statistics = segment_statistics(routing, segment_T, plan.segments(forward).size(), wanted);
    if (!totals.ledger().record(forward, layer, statistics)) return;
  } catch (const ShapeError& error) {
    throw ShapeError(join_text(plan.place(forward, layer), ": ", error.what()));
  }
  const auto [begin, end] = plan.segments(forward);
  const auto micro_batch = plan.segment_micro_batch.begin();
  selection.record(layer, routing, segment_T, {micro_batch + begin, micro_batch + end});
}

template <typename Part>
void StepBalance::Impl::keep_problem(const Part& part) {
  try {
    part();
  } catch (const std::exception& error) {
    if (!many_ranks()) throw;
    if (problem.empty()) problem = text_of(error);
  }
}

void StepBalance::Impl::check_recorded(int64_t forward) const {
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    // A rank without a sequence in this forward need not run it.
    const bool empty = plan.segments(forward).empty();
    SWITCHYARD_CHECK(config.orthogonality_coefficient == 0.0 || output_losses[shape.index(forward, layer)] != kNotSeen || empty,
                     StateError, plan.place(forward, layer),
                     ": close_forward() before through_outputs(), so the orthogonality loss could not act");
    SWITCHYARD_CHECK(totals.ledger().has(forward, layer) || (many_ranks() && empty), StateError, plan.place(forward, layer),
                     ": close_forward() before record(); every MoE layer must record once per forward");
  }
}

// What was recorded had passed its scores through; a layer that runs again says so again.
void StepBalance::Impl::restore(const StepProgress& progress) {
  for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
    for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
      SWITCHYARD_CHECK(!totals.ledger().has(forward, layer) && !closed[static_cast<size_t>(forward)], StateError,
                       plan.place(forward, layer), ": resume() after this step has begun; resume first, then run what is left");
    }
  }
  check_facts(progress, begun_with);
  totals.ledger().restore(progress);
  selection.restore(progress);
  take(progress, "output_losses_FL", output_losses);
  take(progress, "closed_F", closed);
}

// Shares of the values, then one sum over ranks.
BalanceValues StepBalance::Impl::gather_values() {
  const auto num_layers = static_cast<size_t>(shape.num_layers);
  const bool counted_here = totals.plan().replica == 0;
  std::vector<double> shares;
  for (const auto& term : terms) {
    const std::vector<double> shares_L = term->has_values() ? term->value_shares_L() : std::vector<double>(num_layers, 0.0);
    shares.insert(shares.end(), shares_L.begin(), shares_L.end());
  }
  const auto tokens = static_cast<double>(std::max<int64_t>(step_tokens(), 1));
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    shares.push_back(counted_here ? totals.ledger().squared_lse(layer) / tokens : 0.0);
  }
  for (int64_t layer = 0; layer < shape.num_layers; ++layer) {
    double sum = 0.0;
    for (int64_t forward = 0; forward < plan.num_forwards(); ++forward) {
      const double loss = output_losses[shape.index(forward, layer)];
      sum += loss == kNotSeen ? 0.0 : loss;  // NaN stays NaN
    }
    shares.push_back(counted_here ? sum / tokens : 0.0);
  }
  if (many_ranks()) ranks.comm.all_reduce_sum(std::span<double>(shares));

  BalanceValues gathered;
  auto from = shares.begin();
  for (const auto& term : terms) {
    const std::vector<double> value_L(from, from + shape.num_layers);
    from += shape.num_layers;
    gathered.terms.push_back({term->term(), term->has_values() ? value_L : std::vector<double>{}});
    for (const double value : gathered.terms.back().value_L) gathered.weighted_loss += term->per_layer() * value;
  }
  gathered.lbl_L = first_lbl(config, plan.step, gathered.terms);
  if (config.z_coefficient != 0.0) gathered.z_loss_L.assign(from, from + shape.num_layers);
  from += shape.num_layers;
  if (config.orthogonality_coefficient != 0.0) gathered.orthogonality_L.assign(from, from + shape.num_layers);
  for (const double z : gathered.z_loss_L) gathered.weighted_loss += of_a_layer(config.z_coefficient) * z;
  for (const double loss : gathered.orthogonality_L) {
    gathered.weighted_loss += of_a_layer(config.orthogonality_coefficient) * loss;
  }
  return gathered;
}

StepBalance::StepBalance(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan, const BalanceState& state) {
  std::unique_ptr<Communicator> own = make_solo_communicator();
  *this = StepBalance(config, shape, plan, state, BalanceRanks{*own});
  impl_->own_comm = std::move(own);
}

StepBalance::StepBalance(const BalanceConfig& config, const BalanceShape& shape, const StepPlan& plan, const BalanceState& state,
                         const BalanceRanks& ranks)
    : impl_(std::make_unique<Impl>(config, shape, plan, gather_plan(config, shape, plan, state, ranks.share, ranks.comm), state,
                                   ranks)) {}

StepBalance::~StepBalance() = default;
StepBalance::StepBalance(StepBalance&&) noexcept = default;
StepBalance& StepBalance::operator=(StepBalance&&) noexcept = default;

at::Tensor StepBalance::through_logits(int64_t forward, int64_t layer, const at::Tensor& logits_TE,
                                       const at::Tensor& segment_T) {
  return impl_->through(logits_TE, [&] {
    impl_->check_place(forward, layer);
    return impl_->cells.through_logits(forward, layer, logits_TE, segment_T);
  });
}

at::Tensor StepBalance::through_probs(int64_t forward, int64_t layer, const at::Tensor& probs_TE, const at::Tensor& segment_T) {
  return impl_->through(probs_TE, [&] {
    impl_->check_place(forward, layer);
    return impl_->cells.through_probs(forward, layer, probs_TE, segment_T);
  });
}

bool StepBalance::wants_outputs() const { return impl_->config.orthogonality_coefficient != 0.0; }

at::Tensor StepBalance::through_outputs(int64_t forward, int64_t layer, const at::Tensor& out_TD, const at::Tensor& loss_T,
                                        const at::Tensor& segment_T) {
  return impl_->through(out_TD, [&] {
    impl_->check_place(forward, layer);
    impl_->cells.check_token_losses(forward, layer, loss_T, segment_T);
    double& sum = impl_->output_losses[impl_->shape.index(forward, layer)];
    if (sum == kNotSeen) sum = loss_T.detach().masked_fill(segment_T.lt(0), 0.0).sum(at::kDouble).item<double>();
    return impl_->cells.through_outputs(forward, layer, out_TD, loss_T, segment_T);
  });
}

at::Tensor StepBalance::selection_offsets_E(int64_t layer) const {
  impl_->check_place(0, layer);
  return impl_->selection.offsets_E(layer);
}

bool StepBalance::lacks_history() const {
  return std::any_of(impl_->terms.begin(), impl_->terms.end(), [](const auto& term) { return term->injects() && term->lacks_history(); });
}

bool StepBalance::needs_whole_step() const {
  return std::any_of(impl_->terms.begin(), impl_->terms.end(), [this](const auto& term) {
    return term->injects() && switchyard::needs_whole_step(term->term().scope, impl_->totals.plan().whole);
  });
}

StepProgress StepBalance::progress() const {
  StepProgress progress;
  put_facts(progress, impl_->begun_with);
  impl_->totals.ledger().save(progress);
  impl_->selection.save(progress);
  put(progress, "output_losses_FL", impl_->output_losses);
  put(progress, "closed_F", impl_->closed);
  return progress;
}

void StepBalance::resume(const StepProgress& progress) {
  Impl& impl = *impl_;
  impl.keep_problem([&] { impl.restore(progress); });
  if (impl.many_ranks()) {
    throw_if_any(impl.ranks.comm, impl.problem);
    require_equal(impl.ranks.comm, "(hash) as forwards that were closed when progress was saved", impl.closed_hash());
  }
  for (int64_t forward = 0; forward < impl.plan.num_forwards(); ++forward) {
    if (!impl.closed[static_cast<size_t>(forward)]) continue;
    impl.totals.start(forward, 0);
    await_forward(forward);
  }
}

int64_t StepBalance::step_tokens() const { return impl_->step_tokens(); }

void StepBalance::record(int64_t forward, int64_t layer, const Routing& routing, const at::Tensor& segment_T) {
  const PartScope part(kPart);
  impl_->keep_problem([&] {
    impl_->check_place(forward, layer);
    impl_->record(forward, layer, routing, segment_T);
  });
}

void StepBalance::close_forward(int64_t forward) {
  const PartScope part(kPart);
  impl_->check_forward(forward);
  if (impl_->closed[static_cast<size_t>(forward)]) return;
  if (impl_->problem.empty()) impl_->keep_problem([&] { impl_->check_recorded(forward); });
  impl_->closed[static_cast<size_t>(forward)] = true;
  impl_->totals.start(forward, impl_->problem.empty() ? 0 : 1);
  if (!impl_->many_ranks()) await_forward(forward);
}

void StepBalance::await_forward(int64_t forward) {
  const PartScope part(kPart);
  impl_->check_forward(forward);
  SWITCHYARD_CHECK(impl_->closed[static_cast<size_t>(forward)], StateError, "step ", impl_->plan.step, ": await_forward(",
                   forward, ") before close_forward()");
  if (impl_->awaited[static_cast<size_t>(forward)]) return;
  impl_->awaited[static_cast<size_t>(forward)] = true;
  if (impl_->totals.finish(forward) > 0) throw_if_any(impl_->ranks.comm, impl_->problem);
  if (impl_->problem.empty()) impl_->fill_known();
  if (!impl_->problem.empty()) impl_->cells.fill_with_zeros(forward);
}

void StepBalance::close_counting() {
  const PartScope part(kPart);
  Impl& impl = *impl_;
  if (impl.counting_closed) return;
  for (int64_t forward = 0; forward < impl.plan.num_forwards(); ++forward) {
    SWITCHYARD_CHECK(impl.closed[static_cast<size_t>(forward)], StateError, "step ", impl.plan.step,
                     ": close_counting() before close_forward(", forward, "); the step's counts are not complete");
    await_forward(forward);
  }
  if (impl.many_ranks()) throw_if_any(impl.ranks.comm, impl.problem);
  impl.counts_MLE = impl.totals.micro_batch_counts_MLE();
  impl.values = impl.gather_values();
  impl.selection.close(impl.ranks.comm, impl.totals.plan().replica);
  impl.counting_closed = true;
}

at::Tensor StepBalance::step_counts_LE() const { return micro_batch_counts_MLE().sum(0); }

at::Tensor StepBalance::micro_batch_counts_MLE() const {
  SWITCHYARD_CHECK(impl_->counting_closed, StateError, "step ", impl_->plan.step, ": counts are asked for before close_counting()");
  return impl_->counts_MLE;
}

BalanceValues StepBalance::values() const {
  SWITCHYARD_CHECK(impl_->counting_closed, StateError, "step ", impl_->plan.step, ": values() before close_counting()");
  return impl_->values;
}

void StepBalance::finish(BalanceState& state) {
  const at::Tensor counts_LE = step_counts_LE();
  impl_->keep_problem([&] { impl_->cells.check_reached(); });
  // That, or what a layer that ran again in backward found.
  if (impl_->many_ranks()) throw_if_any(impl_->ranks.comm, impl_->problem);
  // A step of padding says nothing about the experts; what is known from before stays.
  if (impl_->step_tokens() == 0) return;
  keep_counts(counts_LE, ema_decay(impl_->config), state);
  impl_->selection.update(counts_LE, impl_->step_tokens(), state);
}

at::Tensor StepBalance::coefficients_SE(int64_t forward, int64_t layer) const {
  impl_->check_place(forward, layer);
  return impl_->cells.coefficients_SE(forward, layer);
}

}  // namespace switchyard
