#include "switchyard/train/execution_config.hpp"

#include <chrono>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/train/choice.hpp"

namespace switchyard {
namespace {

const std::array<std::string, 3> kExactNames = {"retain", "prepass", "recompute"};
const std::array<std::string, 2> kForwardNames = {"separate", "together"};
const std::array<std::string, 2> kMismatchNames = {"error", "replay"};
const std::array<std::string, 2> kPlacementNames = {"replicated", "sharded"};

constexpr int64_t kMostSeconds = std::chrono::seconds(kLongestTimeLimit).count();

}  // namespace

std::string to_string(const ExactOrder& value) { return kExactNames.at(static_cast<size_t>(value)); }
std::string to_string(const ForwardPacking& value) { return kForwardNames.at(static_cast<size_t>(value)); }
std::string to_string(const OnReplayMismatch& value) { return kMismatchNames.at(static_cast<size_t>(value)); }
std::string to_string(const ExpertPlacement& value) { return kPlacementNames.at(static_cast<size_t>(value)); }

void parse(std::string_view text, ExactOrder& value) {
  value = parse_choice<ExactOrder>("order", kExactNames, text);
}
void parse(std::string_view text, ForwardPacking& value) {
  value = parse_choice<ForwardPacking>("forward packing", kForwardNames, text);
}
void parse(std::string_view text, OnReplayMismatch& value) {
  value = parse_choice<OnReplayMismatch>("answer to a replay mismatch", kMismatchNames, text);
}
void parse(std::string_view text, ExpertPlacement& value) {
  value = parse_choice<ExpertPlacement>("placement of experts", kPlacementNames, text);
}

void ExecutionConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  check(threads >= 0 && threads <= kMostThreads, "threads", threads, join_text("0 (the default) to ", kMostThreads));
  check(time_limit >= 1 && time_limit <= kMostSeconds, "time_limit", time_limit, join_text("1 to ", kMostSeconds, " seconds (a year)"));
  check(exact != ExactOrder::Recompute || recompute == Recompute::Layers, "recompute", to_string(recompute),
        "layers, because execution.exact is recompute");
  check(on_replay_mismatch == OnReplayMismatch::Error || exact == ExactOrder::Prepass, "on_replay_mismatch",
        to_string(on_replay_mismatch), "error, because only execution.exact = prepass records choices");
}

}  // namespace switchyard
