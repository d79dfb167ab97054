#include "switchyard/train/profile.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

constexpr double kNano = 1e-9;

/// Other parts stand outside of steps too: an evaluation runs the model.
bool is_step(const ProfileEvent& event) { return event.kind == ProfileKind::Part && event.name == kOtherPart; }

/// An event that has begun and not ended.
struct Open {
  const ProfileEvent* event = nullptr;
  std::string part = kOtherPart;
  bool in_backward = false;
  int64_t inner_ns = 0;  // of events within it
};

/// Parts by the first node of the graph that was made in them.
class PartsOfNodes {
 public:
  explicit PartsOfNodes(const std::vector<ProfileEvent>& events) {
    for (const ProfileEvent& event : events) {
      if (event.kind == ProfileKind::Part && event.sequence >= 0) part_of_first_[event.sequence] = event.name;
    }
  }

  [[nodiscard]] std::string part_of(int64_t sequence) const {
    auto after = part_of_first_.upper_bound(sequence);
    return sequence < 0 || after == part_of_first_.begin() ? kOtherPart : std::prev(after)->second;
  }

 private:
  std::map<int64_t, std::string> part_of_first_;
};

class Summary {
 public:
  explicit Summary(const std::vector<ProfileEvent>& events) : nodes_(events) {
    for (const ProfileEvent& event : events) add(event);
    while (!open_.empty()) close();
  }

  [[nodiscard]] ProfileReport report(int64_t steps) const {
    const double scale = 1.0 / static_cast<double>(steps);
    ProfileReport report{.steps = steps, .seconds = kNano * scale * static_cast<double>(steps_ns_)};
    for (const auto& [name, time] : parts_) report.parts.push_back({name, time.forward * scale, time.backward * scale});
    for (const auto& [name, time] : kernels_) {
      report.kernels.push_back({name, time.calls * scale, time.seconds * scale, time.flops * scale});
    }
    std::ranges::stable_sort(report.parts, [](const auto& a, const auto& b) { return a.total() > b.total(); });
    std::ranges::stable_sort(report.kernels, [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
    return report;
  }

 private:
  void add(const ProfileEvent& event) {
    while (!open_.empty() && open_.back().event->end_ns <= event.begin_ns) close();
    if (open_.empty() && !is_step(event)) return;
    Open next{.event = &event};
    if (!open_.empty()) {
      next.part = open_.back().part;
      next.in_backward = open_.back().in_backward;
    }
    if (event.kind == ProfileKind::Part) {
      next.part = event.name;
    } else if (event.kind == ProfileKind::Backward) {
      if (event.sequence >= 0) next.part = nodes_.part_of(event.sequence);
      next.in_backward = true;
    }
    open_.push_back(next);
  }

  void close() {
    const Open done = open_.back();
    open_.pop_back();
    const ProfileEvent& event = *done.event;
    const int64_t whole_ns = event.end_ns - event.begin_ns;
    const double self = kNano * static_cast<double>(std::max<int64_t>(whole_ns - done.inner_ns, 0));
    (open_.empty() ? steps_ns_ : open_.back().inner_ns) += whole_ns;
    (done.in_backward ? parts_[done.part].backward : parts_[done.part].forward) += self;
    if (event.kind == ProfileKind::Part) return;
    KernelTime& kernel = kernels_[event.name];
    kernel.calls += 1.0;
    kernel.seconds += self;
    kernel.flops += static_cast<double>(event.flops);
  }

  PartsOfNodes nodes_;
  std::vector<Open> open_;
  std::map<std::string, PartTime> parts_;
  std::map<std::string, KernelTime> kernels_;
  int64_t steps_ns_ = 0;
};

}  // namespace

ProfileReport summarize_profile(std::vector<ProfileEvent> events, int64_t steps) {
  SWITCHYARD_CHECK(steps >= 1, UsageError, "a profile of ", steps, " steps; expected at least one");
  std::ranges::stable_sort(events, [](const ProfileEvent& a, const ProfileEvent& b) {
    return std::tuple(a.begin_ns, -a.end_ns) < std::tuple(b.begin_ns, -b.end_ns);
  });
  const auto first = std::ranges::find_if(events, is_step);
  SWITCHYARD_CHECK(first != events.end(), StateError, "no step was recorded; another profiler may be at work in this process");
  std::erase_if(events, [thread = first->thread](const ProfileEvent& event) { return event.thread != thread; });
  return Summary(events).report(steps);
}

std::string to_json(const ProfileReport& report) {
  nlohmann::ordered_json json = {{"first_step", report.first_step}, {"steps", report.steps},
                                 {"seconds_per_step", report.seconds}, {"flops_per_step", report.flops},
                                 {"peak_flops_per_second", report.peak}, {"share_of_peak", report.share_of_peak()}};
  json["parts"] = nlohmann::ordered_json::array();
  for (const PartTime& part : report.parts) {
    json["parts"].push_back({{"name", part.name}, {"forward_seconds", part.forward}, {"backward_seconds", part.backward}});
  }
  json["kernels"] = nlohmann::ordered_json::array();
  for (const KernelTime& kernel : report.kernels) {
    json["kernels"].push_back(
        {{"name", kernel.name}, {"calls", kernel.calls}, {"seconds", kernel.seconds}, {"flops", kernel.flops}});
  }
  return json.dump(1) + "\n";
}

}  // namespace switchyard
