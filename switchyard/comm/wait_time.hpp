#pragma once
// How long a wait for other ranks has lasted, as its time limit counts it. Meant for those who write a communicator.

#include <chrono>

namespace switchyard {

/// Time in which this process stood still (a container that is paused, a suspended machine) is no time in which another rank was
/// late: most likely that one stood still too. It shows as a long gap between two looks, which happen many times a second. Such a
/// gap counts a tenth of a second, so that a wait ends also on a machine that has no time for it. After the limit a little longer
/// is waited, for ranks do not wake at the same moment.
class WaitTime {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kLongestGap{1000};  // between looks of a process that runs
  static constexpr std::chrono::milliseconds kCountedOfAGap{100};
  static constexpr std::chrono::milliseconds kGrace{100};

  WaitTime(std::chrono::milliseconds limit, Clock::time_point begin) : limit_(limit), last_look_(begin) {}

  /// At each look at what is waited for, once it was seen not to be there. @return whether to give up
  [[nodiscard]] bool is_over(Clock::time_point now) {
    const Clock::duration gap = now - last_look_;
    last_look_ = now;
    counted_ += gap > kLongestGap ? kCountedOfAGap : gap;
    return counted_ >= limit_ + kGrace;
  }

 private:
  std::chrono::milliseconds limit_;
  Clock::time_point last_look_;
  Clock::duration counted_{0};
};

}  // namespace switchyard
