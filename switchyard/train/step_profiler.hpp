#pragma once
// Records some steps of a run with libtorch's profiler (Kineto).

#include <cstdint>
#include <filesystem>

#include "switchyard/model/config.hpp"
#include "switchyard/train/profile.hpp"

namespace switchyard {

class StepProfiler {
 public:
  /// Measures the peak first: the best of a few large products in the compute type, on the threads of the process (about .3 s).
  /// Then records what this thread and those of the process do, until finish(). One at a time in a process.
  explicit StepProfiler(ComputeType compute);
  ~StepProfiler();  // drops what was recorded

  /// Writes a trace that chrome://tracing and ui.perfetto.dev show.
  /// @param steps  that were recorded
  /// @param flops  of one step
  /// @throws DataError when the trace cannot be written
  [[nodiscard]] ProfileReport finish(int64_t steps, double flops, const std::filesystem::path& trace);

 private:
  double peak_;
  bool recording_ = true;
};

}  // namespace switchyard
