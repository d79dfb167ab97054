#pragma once
// Names for what the profiler sees (train/profile.hpp). Cost nothing measurable while no profiler listens.

#include <ATen/SequenceNumber.h>
#include <ATen/record_function.h>

namespace switchyard {

/// A part of a step: "attention", "router". Parts follow one another; the backward of what was computed in one is counted for it.
class PartScope {
 public:
  explicit PartScope(const char* name) : record_(at::RecordScope::USER_SCOPE) {
    // The number of the next node of the graph tells later which backward belongs here.
    if (record_.isActive()) record_.before(name, static_cast<int64_t>(at::sequence_number::peek()));
  }

 private:
  at::RecordFunction record_;
};

/// A fused operation, beside ATen's, which name themselves.
class KernelScope {
 public:
  explicit KernelScope(const char* name) : record_(at::RecordScope::FUNCTION) {
    if (record_.isActive()) record_.before(name);
  }

 private:
  at::RecordFunction record_;
};

}  // namespace switchyard
