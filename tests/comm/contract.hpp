#pragma once
// What every communicator must do, as checks that run inside one rank: the same suite over one member, threads, processes and
// c10d groups. All ranks run the same case.

#include <span>
#include <stdexcept>
#include <string_view>

#include "switchyard/comm/communicator.hpp"

namespace switchyard::test {

/// A check of the suite that does not hold.
class ContractFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What an implementation must offer for a case.
enum class Needs { Basics, Parts, AgreementCheck };

struct ContractCase {
  std::string_view name;
  Needs needs;
  void (*run)(Communicator&);
};

/// All cases after which the group can be used on.
[[nodiscard]] std::span<const ContractCase> contract_cases();

/// A rank that does not come: the others get a CommError that names it, within the limit. Rank 0 stays away from a part that
/// this makes, so the group itself can be used on; that part cannot. Needs parts and at least 2 ranks.
void check_time_limit(Communicator& world);

/// Throws ContractFailure with the text unless the condition holds.
void require(bool condition, std::string_view text);

}  // namespace switchyard::test
