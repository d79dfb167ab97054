#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>

#include "switchyard/data/progress.hpp"

namespace switchyard {

/// Counts what several threads finish and reports it one call at a time.
class PhaseCounter {
 public:
  PhaseCounter(Progress& progress, std::string phase, int64_t total)
      : progress_(progress), phase_(std::move(phase)), total_(total) {
    progress_.report(phase_, 0, total_);
  }
  void add(int64_t count) {
    const std::scoped_lock lock(mutex_);
    done_ += count;
    progress_.report(phase_, done_, total_);
  }

 private:
  Progress& progress_;
  std::string phase_;
  int64_t total_;
  int64_t done_ = 0;
  std::mutex mutex_;
};

}  // namespace switchyard
