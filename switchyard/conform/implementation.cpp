#include "switchyard/conform/implementation.hpp"

#include "switchyard/core/error.hpp"

namespace switchyard::conform {

std::string to_string(Feature feature) {
  switch (feature) {
    case Feature::MicroBatches:
      return "several micro-batches a step";
    case Feature::Ranks:
      return "several ranks";
    case Feature::SplitSegments:
      return "sequences split over ranks";
    case Feature::Devices:
      return "grids of devices";
    case Feature::Padding:
      return "padding";
    case Feature::Packing:
      return "packed documents";
    case Feature::GivenChoices:
      return "choices other than the largest scores";
    case Feature::Capacity:
      return "dropped slots";
    case Feature::Recompute:
      return "forwards that run twice";
    case Feature::TaskLoss:
      return "a task loss beside the balancing loss";
    case Feature::Evaluation:
      return "evaluation between micro-batches";
    case Feature::BadWiring:
      return "routers that pass nothing on";
    case Feature::SavedState:
      return "state that is saved and restored";
    case Feature::SavedProgress:
      return "progress that is saved within a step";
    case Feature::CountAccumulation:
      return "counts given as numbers";
  }
  throw UsageError("conformance feature that does not exist");
}

Capabilities full_capabilities() {
  Capabilities all;
  for (const ScopeInfo& info : scope_table()) {
    all.subjects.push_back({"lbl",
                            {.kind = info.kind,
                             .num_sequences = info.kind == ScopeKind::Sequences ? 2 : 0,
                             .decay = info.kind == ScopeKind::Ema ? 0.9 : 0.0}});
  }
  for (int feature = 0; feature <= static_cast<int>(Feature::CountAccumulation); ++feature) {
    all.features.insert(static_cast<Feature>(feature));
  }
  using enum Averaging;
  for (const Averaging micro_batches : {Mean, Sum, ByTokens}) {
    for (const Averaging ranks : {Mean, Sum, ByTokens}) all.contracts.push_back({micro_batches, ranks});
  }
  return all;
}

void check_capabilities(const Capabilities& capabilities, const std::string& name) {
  SWITCHYARD_CHECK(!capabilities.subjects.empty() && !capabilities.contracts.empty() && !capabilities.weightings.empty() &&
                       !capabilities.layer_reductions.empty(),
                   UsageError, name, " lacks a subject, contract, weighting or layer reduction; expected one of each at least");
  SWITCHYARD_CHECK(capabilities.tolerance >= kSmallestTolerance && capabilities.tolerance <= kWidestTolerance, UsageError, name,
                   " asks for a tolerance of ", capabilities.tolerance, "; expected ", kSmallestTolerance, " to ",
                   kWidestTolerance);
}

std::vector<int64_t> Implementation::accumulate(const std::vector<std::vector<int64_t>>&) const {
  throw UsageError(join_text(name(), " does not take counts as numbers"));
}

Outcome Implementation::run(const BalanceCase& step, const StateBytes& saved) const {
  std::vector<Outcome> outcomes = run_steps({&step, 1}, saved);
  SWITCHYARD_CHECK(outcomes.size() == 1, StateError, name(), " returned ", outcomes.size(), " outcomes of one step");
  return std::move(outcomes.front());
}

}  // namespace switchyard::conform
