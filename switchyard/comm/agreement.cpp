#include "switchyard/comm/agreement.hpp"

#include <c10/util/Exception.h>

#include <algorithm>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

std::vector<int64_t> all_values(Communicator& comm, int64_t value) {
  std::vector<int64_t> all_R(static_cast<size_t>(comm.size()));
  comm.all_gather(std::span(&value, 1), all_R);
  return all_R;
}

std::string where(const Communicator& comm) {
  return comm.step() == kNoStep ? comm.describe() : join_text(comm.describe(), ", step ", comm.step());
}

// Throws unless all values are those of the first rank.
template <typename Value>
void require_equal_values(const Communicator& comm, std::string_view what, const std::vector<Value>& values_R) {
  if (std::ranges::count(values_R, values_R.front()) == std::ssize(values_R)) return;
  std::string text = join_text(where(comm), ": the ranks differ in ", what, ":");
  for (size_t rank = 0; rank < values_R.size(); ++rank)
    text += join_text(rank > 0 ? "," : "", " rank ", rank, " has ", values_R[rank]);
  throw SharedError(text);
}

}  // namespace

std::string text_of(const std::exception& error) {
  const auto* const from_c10 = dynamic_cast<const c10::Error*>(&error);
  return from_c10 != nullptr ? from_c10->what_without_backtrace() : error.what();
}

std::vector<std::string> all_gather_text(Communicator& comm, std::string_view text) {
  std::vector<std::string> texts_R;
  for (const std::vector<char>& letters : all_gather_lists<char>(comm, text)) texts_R.emplace_back(letters.begin(), letters.end());
  return texts_R;
}

void throw_if_any(Communicator& comm, std::string_view problem) {
  const std::vector<std::string> problems_R = all_gather_text(comm, problem);
  std::string text;
  for (size_t rank = 0; rank < problems_R.size(); ++rank) {
    if (!problems_R[rank].empty()) text += join_text(text.empty() ? "" : "; ", "rank ", rank, ": ", problems_R[rank]);
  }
  SWITCHYARD_CHECK(text.empty(), SharedError, where(comm), ": ", text);
}

void require_equal(Communicator& comm, std::string_view what, int64_t value) {
  require_equal_values(comm, what, all_values(comm, value));
}

void require_equal(Communicator& comm, std::string_view what, std::string_view text) {
  require_equal_values(comm, what, all_gather_text(comm, text));
}

}  // namespace switchyard
