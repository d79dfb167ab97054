#include "switchyard/train/execution_config.hpp"

#include <array>
#include <chrono>

#include "switchyard/comm/communicator.hpp"
#include "switchyard/comm/launch.hpp"
#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kOrders = std::to_array<Spelling<ExactOrder>>(
    {{ExactOrder::Retain, "retain"}, {ExactOrder::Prepass, "prepass"}, {ExactOrder::Recompute, "recompute"}});
constexpr auto kPackings = std::to_array<Spelling<ForwardPacking>>(
    {{ForwardPacking::Separate, "separate"}, {ForwardPacking::Together, "together"}});
constexpr auto kAnswers = std::to_array<Spelling<OnReplayMismatch>>(
    {{OnReplayMismatch::Error, "error"}, {OnReplayMismatch::Replay, "replay"}});
constexpr auto kPlacements = std::to_array<Spelling<ExpertPlacement>>(
    {{ExpertPlacement::Replicated, "replicated"}, {ExpertPlacement::Sharded, "sharded"}});

constexpr int64_t kMostSeconds = std::chrono::seconds(kLongestTimeLimit).count();

}  // namespace

std::string to_string(const ExactOrder& value) { return spelling_of(kOrders, value); }
void parse(std::string_view text, ExactOrder& value) { value = from_spelling("order", kOrders, text); }
std::string to_string(const ForwardPacking& value) { return spelling_of(kPackings, value); }
void parse(std::string_view text, ForwardPacking& value) { value = from_spelling("forward packing", kPackings, text); }
std::string to_string(const OnReplayMismatch& value) { return spelling_of(kAnswers, value); }
void parse(std::string_view text, OnReplayMismatch& value) {
  value = from_spelling("answer to a replay mismatch", kAnswers, text);
}
std::string to_string(const ExpertPlacement& value) { return spelling_of(kPlacements, value); }
void parse(std::string_view text, ExpertPlacement& value) { value = from_spelling("placement of experts", kPlacements, text); }

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
