#pragma once
// The 28 invariants as metamorphic tests: each changes a step in a way that must not matter (or must matter in a known way) and
// compares what comes out. Each is a bug that some project shipped.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/conform/implementation.hpp"

namespace switchyard::conform {

enum class Verdict { Holds, Fails, DoesNotApply };
[[nodiscard]] std::string to_string(Verdict verdict);

struct Finding {
  Verdict verdict = Verdict::Holds;
  std::string message;  // Holds: may be empty. Fails: what broke, with numbers. DoesNotApply: why
};

struct Check {
  std::string_view id;         // "B1"
  std::string_view name;       // "rank-scale"; id and name together are unique
  std::string_view invariant;  // what must hold, one sentence
  std::string_view bug;        // where it did not
  std::vector<Feature> needs;  // without one of them the check does not apply
  Finding (*run)(const Implementation& implementation, const Subject& subject);
};

/// All checks, in the order of their numbers.
[[nodiscard]] const std::vector<Check>& check_table();

struct Result {
  const Check* check = nullptr;
  Subject subject;
  Finding finding;
};

/// One check on one subject. An error that the implementation throws is a failure; its text is the message.
[[nodiscard]] Result run_check(const Implementation& implementation, const Check& check, const Subject& subject);

/// All checks on all subjects.
/// @param only  an id such as "B7", or nothing for all; an unknown one is a UsageError
[[nodiscard]] std::vector<Result> run_suite(const Implementation& implementation, const std::optional<std::string>& only = {});

}  // namespace switchyard::conform
