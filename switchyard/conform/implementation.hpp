#pragma once
// The thing under test. Whoever wants an implementation of load balancing checked writes one adapter: a function from the
// description of some steps to what came out of them.

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "switchyard/conform/case.hpp"

namespace switchyard::conform {

// Of Capabilities::tolerance.
inline constexpr double kSmallestTolerance = 1e-12;
inline constexpr double kDoubleTolerance = 1e-9;
inline constexpr double kFp32Tolerance = 1e-5;
inline constexpr double kWidestTolerance = 1e-3;

/// What an implementation can be asked for. What it lacks makes a check "does not apply", not "fails".
enum class Feature {
  MicroBatches,       // more than one a step
  Ranks,              // more than one process, or their simulation
  SplitSegments,      // one sequence on several ranks (context parallelism)
  Devices,            // BalanceCase::grid: pipeline stages and tensor-parallel replicas
  Padding,            // tokens that count nowhere, and forwards without any that counts
  Packing,            // several documents in one row
  GivenChoices,       // BalanceCase::choices_LTK
  Capacity,           // BalanceCase::dropped_LTK
  Recompute,          // BalanceCase::runs_L
  TaskLoss,           // BalanceCase::task_LTE, and the method "none"
  Evaluation,         // BalanceCase::evaluation
  BadWiring,          // BalanceCase::wiring
  SavedState,         // Outcome::state is all that the next step needs
  SavedProgress,      // BalanceCase::interruption
  CountAccumulation,  // Implementation::accumulate
};
[[nodiscard]] std::string to_string(Feature feature);

/// Of contracts, weightings and layer reductions all are tried where they matter; elsewhere the first one is used.
struct Capabilities {
  std::vector<Subject> subjects;
  std::set<Feature> features;
  std::vector<GradientContract> contracts;
  std::vector<GroupWeighting> weightings{GroupWeighting::Tokens, GroupWeighting::Mean};
  std::vector<LayerReduction> layer_reductions{LayerReduction::Mean, LayerReduction::Sum};
  /// How far numbers may lie apart, relative to the largest compared: the default for double, kFp32Tolerance for fp32. The
  /// wider, the more faults pass.
  double tolerance = kDoubleTolerance;

  [[nodiscard]] bool has(Feature feature) const { return features.contains(feature); }
};

/// The method `lbl` over every scope, every feature and every contract; what else can be asked for is added to it.
[[nodiscard]] Capabilities full_capabilities();

/// Throws UsageError where nothing could be asked for, or the tolerance is outside of [kSmallestTolerance, kWidestTolerance].
void check_capabilities(const Capabilities& capabilities, const std::string& name);

/// Bytes that only the implementation can read. Empty before the first step.
using StateBytes = std::string;

/// What a step left behind.
struct Outcome {
  std::vector<int64_t> step_counts_LE;                 // requested slots of valid tokens over the whole step
  std::vector<std::vector<int64_t>> micro_counts_MLE;  // the same of each micro-batch, over all ranks
  /// The raw loss of each layer; empty where there is none (no history yet). Of a rule that corrects choices: the offsets that
  /// it leaves for the next step, [L, E].
  std::vector<double> value_L;
  double weighted_loss = 0.0;        // what was added to the training loss
  double task_loss = 0.0;            // what is reported as the task's loss: sum(task * probs) over valid tokens
  std::vector<double> gradient_LTE;  // d loss / d logits after what the contract says the callers do
  StateBytes state;

  bool operator==(const Outcome&) const = default;
};

class Implementation {
 public:
  virtual ~Implementation() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual Capabilities capabilities() const = 0;

  /// Runs the steps one after another, beginning from `saved`. Only what capabilities() names is asked for.
  [[nodiscard]] virtual std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const = 0;

  /// Adds up the counts of the micro-batches of one layer, parts_ME, as run_steps() does; for numbers of tokens that no test
  /// can run. Only with Feature::CountAccumulation.
  [[nodiscard]] virtual std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const;

  /// One step.
  [[nodiscard]] Outcome run(const BalanceCase& step, const StateBytes& saved = {}) const;
};

}  // namespace switchyard::conform
