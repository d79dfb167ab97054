#pragma once
// A problem that one rank sees, told to all: so that every rank ends with a named error, and none waits for the others. And
// lists of different lengths, told to all. R ranks.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
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

/// What an error says, without the backtrace that ATen's and c10d's bring with them, which helps no other rank.
[[nodiscard]] std::string text_of(const std::exception& error);

/// The lists of all ranks, by rank: one all-gather of the longest length, none where all are empty. Collective.
/// @param lengths_R  of every rank's list, which all ranks know
template <typename Value>
[[nodiscard]] std::vector<std::vector<Value>> all_gather_lists(Communicator& comm, std::span<const Value> mine,
                                                               std::span<const int64_t> lengths_R) {
  const auto longest = static_cast<size_t>(std::ranges::max(lengths_R));
  std::vector<Value> padded(mine.begin(), mine.end());
  padded.resize(longest);
  std::vector<Value> all_R(longest * lengths_R.size());
  if (longest > 0) comm.all_gather(padded, all_R);
  std::vector<std::vector<Value>> lists_R;
  for (size_t rank = 0; rank < lengths_R.size(); ++rank) {
    const Value* begin = all_R.data() + rank * longest;
    lists_R.emplace_back(begin, begin + lengths_R[rank]);
  }
  return lists_R;
}

/// The same where lengths are not known: another all-gather tells them first.
template <typename Value>
[[nodiscard]] std::vector<std::vector<Value>> all_gather_lists(Communicator& comm, std::span<const Value> mine) {
  const int64_t length = std::ssize(mine);
  std::vector<int64_t> lengths_R(static_cast<size_t>(comm.size()));
  comm.all_gather(std::span(&length, 1), lengths_R);
  return all_gather_lists<Value>(comm, mine, lengths_R);
}

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
/// The same for texts, which are best short: the message has them all.
void require_equal(Communicator& comm, std::string_view what, std::string_view text);

}  // namespace switchyard
