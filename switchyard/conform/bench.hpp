#pragma once
// What the checks are written with: an implementation and a subject to run steps on, and a judge that keeps what broke.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "switchyard/conform/rearrange.hpp"
#include "switchyard/conform/suite.hpp"

namespace switchyard::conform {

/// Keeps the first complaint.
class Judge {
 public:
  /// @param tolerance  relative to the largest number compared
  explicit Judge(double tolerance) : tolerance_(tolerance) {}

  void fail(const std::string& message);
  void near(double given, double expected, const std::string& what);
  /// Compares vectors; a complaint names the largest difference and the scale between the two.
  void same(std::span<const double> given, std::span<const double> expected, const std::string& what);
  void same_bits(std::span<const double> given, std::span<const double> expected, const std::string& what);
  void same_counts(std::span<const int64_t> given, std::span<const int64_t> expected, const std::string& what);
  void finite(const Outcome& outcome, const std::string& what);
  /// Bit for bit, without the state.
  void same_outcome(const Outcome& given, const Outcome& expected, const std::string& what);

  [[nodiscard]] bool holds() const { return message_.empty(); }
  [[nodiscard]] Finding finding() const { return {holds() ? Verdict::Holds : Verdict::Fails, message_}; }

 private:
  double tolerance_;
  std::string message_;
};

class Bench {
 public:
  Bench(const Implementation& implementation, const Subject& subject)
      : implementation_(implementation), capabilities_(implementation.capabilities()), subject_(subject) {}

  [[nodiscard]] const Implementation& implementation() const { return implementation_; }
  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }
  [[nodiscard]] const Subject& subject() const { return subject_; }
  [[nodiscard]] ScopeKind kind() const { return subject_.scope.kind; }
  [[nodiscard]] bool is_lbl() const { return subject_.method == "lbl"; }
  [[nodiscard]] bool in_textbook() const { return is_lbl() || is_token_loss(subject_); }
  [[nodiscard]] bool has_scope(ScopeKind scope) const { return conform::has_scope(subject_) && kind() == scope; }
  [[nodiscard]] bool has(Feature feature) const { return capabilities_.has(feature); }
  /// As many as wanted, where the implementation knows more than one.
  [[nodiscard]] int64_t micro_batches(int64_t wanted) const { return has(Feature::MicroBatches) ? wanted : 1; }
  [[nodiscard]] int64_t ranks(int64_t wanted) const { return has(Feature::Ranks) ? wanted : 1; }
  /// Whether sequences may be split over ranks.
  [[nodiscard]] bool splits_segments() const { return has(Feature::Ranks) && has(Feature::SplitSegments); }
  [[nodiscard]] Judge judge() const { return Judge(capabilities_.tolerance); }

  /// make_case with the subject and the implementation's first contract, weighting and layer reduction.
  [[nodiscard]] BalanceCase step(const Lengths& lengths, uint64_t seed, Rows rows = Rows::OnePerSequence) const;
  /// The same for a case made elsewhere.
  [[nodiscard]] BalanceCase of_subject(BalanceCase step) const;

  /// The step after another one, where the scope needs an earlier step.
  [[nodiscard]] Outcome run(const BalanceCase& step) const;
  /// The step after one just like it.
  [[nodiscard]] Outcome run_twice(const BalanceCase& step) const;
  /// What run() puts first.
  [[nodiscard]] BalanceCase earlier_step(const BalanceCase& like) const;

 private:
  const Implementation& implementation_;
  Capabilities capabilities_;
  Subject subject_;
};

inline constexpr const char* kNoLoss = "it corrects choices and adds no loss";
[[nodiscard]] Finding does_not_apply(const std::string& why);
[[nodiscard]] Finding has_no_notion(const Implementation& implementation, Feature feature);

/// "micro-batches mean, ranks by tokens".
[[nodiscard]] std::string contract_text(const GradientContract& contract);

/// (largest count - mean) / mean.
[[nodiscard]] double max_vio(std::span<const int64_t> counts_E);
/// Counts of a layer out of [L, E].
[[nodiscard]] std::span<const int64_t> layer_of(const std::vector<int64_t>& counts_LE, int64_t layer, int64_t num_layers);

/// Logits so near zero that every expert's probability is 1 / E within 1e-9: the LBL is then sum_e f_e.
void flatten_logits(BalanceCase& step);

// The checks, by topic; each has the form of Check::run.
Finding check_rank_scale(const Implementation& implementation, const Subject& subject);
Finding check_dense_oracle(const Implementation& implementation, const Subject& subject);
Finding check_denominators(const Implementation& implementation, const Subject& subject);
Finding check_contract(const Implementation& implementation, const Subject& subject);
Finding check_accumulation(const Implementation& implementation, const Subject& subject);
Finding check_coefficient(const Implementation& implementation, const Subject& subject);
Finding check_enters_once(const Implementation& implementation, const Subject& subject);
Finding check_recompute(const Implementation& implementation, const Subject& subject);

Finding check_used_choices(const Implementation& implementation, const Subject& subject);
Finding check_padding(const Implementation& implementation, const Subject& subject);
Finding check_packing(const Implementation& implementation, const Subject& subject);
Finding check_own_length(const Implementation& implementation, const Subject& subject);
Finding check_capacity(const Implementation& implementation, const Subject& subject);
Finding check_every_choice(const Implementation& implementation, const Subject& subject);
Finding check_layers_apart(const Implementation& implementation, const Subject& subject);
Finding check_normalised_scores(const Implementation& implementation, const Subject& subject);
Finding check_no_certificate(const Implementation& implementation, const Subject& subject);

Finding check_collectives(const Implementation& implementation, const Subject& subject);
Finding check_stages(const Implementation& implementation, const Subject& subject);
Finding check_schedules(const Implementation& implementation, const Subject& subject);
Finding check_layouts(const Implementation& implementation, const Subject& subject);
Finding check_new_denominators(const Implementation& implementation, const Subject& subject);
Finding check_captured_graphs(const Implementation& implementation, const Subject& subject);

Finding check_buffer(const Implementation& implementation, const Subject& subject);
Finding check_saved_state(const Implementation& implementation, const Subject& subject);
Finding check_saved_progress(const Implementation& implementation, const Subject& subject);
Finding check_evaluation(const Implementation& implementation, const Subject& subject);
Finding check_never_silent(const Implementation& implementation, const Subject& subject);
Finding check_multi_token_prediction(const Implementation& implementation, const Subject& subject);
Finding check_metric_scope(const Implementation& implementation, const Subject& subject);
Finding check_order(const Implementation& implementation, const Subject& subject);
Finding check_exact_counts(const Implementation& implementation, const Subject& subject);

}  // namespace switchyard::conform
