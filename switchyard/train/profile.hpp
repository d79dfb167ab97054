#pragma once
// Where the time of a step went: from a profiler's events to tables. Times are self times, so that rows add up to the whole.

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

enum class ProfileKind {
  Part,      // a PartScope
  Backward,  // a node of the graph, run backwards
  Kernel,    // an operation
};

struct ProfileEvent {
  std::string name{};
  ProfileKind kind = ProfileKind::Kernel;
  uint64_t thread = 0;
  int64_t begin_ns = 0;
  int64_t end_ns = 0;
  int64_t sequence = -1;  // Backward: of its node; Part: of the first node made in it; -1: none
  int64_t flops = 0;      // of this call, 0 where unknown
};

/// Seconds per step.
struct PartTime {
  std::string name;
  double forward = 0.0;
  double backward = 0.0;

  [[nodiscard]] double total() const { return forward + backward; }
};

struct KernelTime {
  std::string name;
  double calls = 0.0;    // per step
  double seconds = 0.0;  // per step
  double flops = 0.0;    // per step, 0 where unknown
};

struct ProfileReport {
  int64_t first_step = 0;
  int64_t steps = 0;
  double seconds = 0.0;              // per step, wall clock, the profiler's own cost included
  double flops = 0.0;                // of the matrix products of a step on this rank, by formula (model/flops.hpp)
  double peak = 0.0;                 // FLOP/s of a large product, measured just before
  std::vector<PartTime> parts{};     // longest first; "other" has what no inner part covers
  std::vector<KernelTime> kernels{};  // longest first

  [[nodiscard]] double share_of_peak() const { return seconds > 0.0 && peak > 0.0 ? flops / seconds / peak : 0.0; }
};

inline constexpr const char* kOtherPart = "other";  // the part around a whole step

/// Takes what lies within outermost parts named kOtherPart, which are the steps; events of a thread must nest. Other threads than that
/// of the first step, and what goes on between steps (checkpoints, the parts of an evaluation), are left out.
[[nodiscard]] ProfileReport summarize_profile(std::vector<ProfileEvent> events, int64_t steps);

[[nodiscard]] std::string to_json(const ProfileReport& report);

}  // namespace switchyard
