#include "switchyard/train/run_ranks.hpp"

#include <exception>
#include <span>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {

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
    problem = caught.what();
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

void RunRanks::require_same(const std::string& what, const std::string& text) {
  require_equal(comm_, what + " (given as hash)", static_cast<int64_t>(hash_text(text)));
}

}  // namespace switchyard
