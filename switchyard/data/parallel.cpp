#include "switchyard/data/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

namespace switchyard {

void run_in_parallel(int64_t count, int64_t num_threads, const std::function<void(int64_t)>& task) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
  const auto work = [&] {
    for (int64_t index = next++; index < count && !failed; index = next++) {
      try {
        task(index);
      } catch (...) {
        errors[static_cast<size_t>(index)] = std::current_exception();
        failed = true;
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int64_t i = 1; i < std::min(num_threads, count); ++i) helpers.emplace_back(work);
    work();
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace switchyard
