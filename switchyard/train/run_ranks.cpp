#include "switchyard/train/run_ranks.hpp"

#include <algorithm>
#include <exception>
#include <span>
#include <vector>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

// The line that has the character at `at`, with what stands before it in the line.
std::string line_at(const std::string& lines, ptrdiff_t at) {
  const size_t end = lines.find('\n', static_cast<size_t>(at));
  const size_t before = lines.rfind('\n', static_cast<size_t>(at) - 1);
  const size_t begin = at == 0 || before == std::string::npos ? 0 : before + 1;
  return lines.substr(begin, end - begin);
}

}  // namespace

// A group of one that was given needs no messages either.
RunRanks::RunRanks(Communicator* comm)
    : solo_(make_solo_communicator()), comm_(comm != nullptr && comm->size() > 1 ? *comm : *solo_), balance_{comm_} {}

void RunRanks::together(const std::function<void()>& part) {
  std::exception_ptr error;
  std::string problem;
  try {
    part();
  } catch (const std::exception& caught) {
    error = std::current_exception();
    problem = text_of(caught);
  }
  try {
    throw_if_any(comm_, problem);
  } catch (const SharedError&) {
    if (is_first() && error != nullptr) std::rethrow_exception(error);
    throw;
  } catch (const CommError&) {
    if (error != nullptr) std::rethrow_exception(error);  // why this rank could not go on says more than who did not come
    throw;
  }
}

int64_t RunRanks::sum(int64_t value) {
  comm_.all_reduce_sum(std::span(&value, 1));
  return value;
}

std::string RunRanks::from_first(const std::string& text) { return all_gather_text(comm_, is_first() ? text : "").front(); }

void RunRanks::require_same(const std::string& what, const std::string& text) { require_equal(comm_, what, text); }

void RunRanks::require_same_config(const RunConfig& config) {
  std::string lines;
  for (const auto& [key, value] : flatten(config)) lines += join_text(key, " = ", value, "\n");
  const std::vector<std::string> lines_R = all_gather_text(comm_, lines);
  const auto other = std::ranges::find_if(lines_R, [&](const std::string& theirs) { return theirs != lines_R.front(); });
  if (other == lines_R.end()) return;
  const auto at = std::ranges::mismatch(lines_R.front(), *other).in1 - lines_R.front().begin();
  throw SharedError(join_text(comm_.describe(), ": the ranks differ in configuration: rank 0 has ", line_at(lines_R.front(), at),
                              ", rank ", other - lines_R.begin(), " has ", line_at(*other, at), "; give all of them the same"));
}

}  // namespace switchyard
