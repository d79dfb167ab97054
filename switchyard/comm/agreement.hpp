#pragma once
// A problem that one rank sees, told to all: so that every rank ends with a named error, and none waits for the others.

#include <string>
#include <string_view>
#include <vector>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {

/// An error that every rank has at the same time and with the same text: it is enough that one of them tells the user.
class SharedError : public CommError {
 public:
  using CommError::CommError;
};

/// The texts of all ranks, by rank. Collective; lengths may differ.
[[nodiscard]] std::vector<std::string> all_gather_text(Communicator& comm, std::string_view text);

/// Collective. Does nothing when every rank gives an empty problem (one small all-gather).
/// @param problem  what is wrong on this rank, empty if nothing is
/// @throws SharedError on every rank: "rank 1 of 4, step 3: rank 2: 16 experts, expected 32; rank 3: ..."
void throw_if_any(Communicator& comm, std::string_view problem);

/// Collective: throws on every rank unless all give the same value (a hash of the configuration, a number of experts).
/// @param what  names it in the message: "number of experts"
/// @throws SharedError with every rank's value
void require_equal(Communicator& comm, std::string_view what, int64_t value);

}  // namespace switchyard
