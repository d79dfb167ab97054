#include "switchyard/train/run_ranks.hpp"

#include <exception>
#include <span>

#include "switchyard/comm/agreement.hpp"
#include "switchyard/core/rng.hpp"

namespace switchyard {

RunRanks::RunRanks(Communicator* comm) : comm_(comm != nullptr && comm->size() > 1 ? comm : nullptr) {
  if (comm_ != nullptr) balance_.emplace(BalanceRanks{*comm_});
}

void RunRanks::set_step(int64_t step) {
  if (comm_ != nullptr) comm_->set_step(step);
}

void RunRanks::together(const std::function<void()>& part) {
  if (comm_ == nullptr) return part();
  std::exception_ptr error;
  std::string problem;
  try {
    part();
  } catch (const std::exception& caught) {
    error = std::current_exception();
    problem = caught.what();
  }
  try {
    throw_if_any(*comm_, problem);
  } catch (const SharedError&) {
    if (is_first() && error != nullptr) std::rethrow_exception(error);
    throw;
  } catch (const CommError&) {
    if (error != nullptr) std::rethrow_exception(error);  // why this rank could not go on says more than who did not come
    throw;
  }
}

int64_t RunRanks::sum(int64_t value) {
  if (comm_ != nullptr) comm_->all_reduce_sum(std::span(&value, 1));
  return value;
}

std::string RunRanks::from_first(const std::string& text) {
  return comm_ == nullptr ? text : all_gather_text(*comm_, is_first() ? text : "").front();
}

void RunRanks::require_same(const std::string& what, const std::string& text) {
  if (comm_ != nullptr) require_equal(*comm_, what + " (given as hash)", static_cast<int64_t>(hash_text(text)));
}

}  // namespace switchyard
