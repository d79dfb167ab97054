#pragma once
// Deliberately broken implementations: one that is right, with one step done as some project did it or might.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "switchyard/conform/textbook.hpp"

namespace switchyard::conform {

struct Mutant {
  std::string bug;    // in a few words
  std::string id;     // of the check that is meant for it
  std::string check;  // its name
  Subject subject;    // where it shows
  std::function<std::unique_ptr<Implementation>()> make;
  // What it was made from.
  std::function<std::unique_ptr<Implementation>()> right = [] { return std::make_unique<Textbook>(); };
};
[[nodiscard]] const std::vector<Mutant>& mutants();

/// The textbook, broken, under the load-balancing loss.
template <typename Broken>
[[nodiscard]] Mutant mutant(std::string bug, std::string id, std::string check, ScopeKind scope = ScopeKind::OptimizerBatch) {
  const Subject subject{"lbl", {.kind = scope, .num_sequences = 2, .decay = 0.9}};
  return {std::move(bug), std::move(id), std::move(check), subject, [] { return std::make_unique<Broken>(); }};
}

// The part of mutants() for B21 to B28.
[[nodiscard]] std::vector<Mutant> state_mutants();

}  // namespace switchyard::conform
