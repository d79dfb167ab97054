#pragma once
// Deliberately broken implementations: the textbook with one step done as some project did it.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

struct Mutant {
  std::string bug;    // in a few words
  std::string id;     // of the check that is meant for it
  std::string check;  // its name
  Subject subject;    // where it shows
  std::function<std::unique_ptr<Implementation>()> make;
};
[[nodiscard]] const std::vector<Mutant>& mutants();

}  // namespace switchyard::conform
