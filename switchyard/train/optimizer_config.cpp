#include "switchyard/train/optimizer_config.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "switchyard/core/section_check.hpp"
#include "switchyard/core/spelling.hpp"

namespace switchyard {
namespace {

constexpr auto kSchedules = std::to_array<Spelling<ScheduleKind>>(
    {{ScheduleKind::Constant, "constant"}, {ScheduleKind::Cosine, "cosine"}, {ScheduleKind::Wsd, "wsd"}});
constexpr auto kMomentTypes =
    std::to_array<Spelling<MomentType>>({{MomentType::Full, "full"}, {MomentType::BFloat16, "bfloat16"}});

// A step moves a moment by up to 1 - beta of itself, and bf16 keeps changes of 1 in 256: below four of those the moment would
// stop to follow the gradients, above all downwards.
constexpr double kLargestRoundedBeta = 1.0 - 4.0 / 256.0;

constexpr double kLeast = 1e-20, kMost = 1e20;  // well within what fp32 knows
constexpr double kLargestBeta = 1.0 - 1e-7;  // above half an fp32 unit below 1 a moment would never forget

}  // namespace

std::string to_string(const ScheduleKind& value) { return spelling_of(kSchedules, value); }
void parse(std::string_view text, ScheduleKind& value) { value = from_spelling("schedule", kSchedules, text); }
std::string to_string(const MomentType& value) { return spelling_of(kMomentTypes, value); }
void parse(std::string_view text, MomentType& value) { value = from_spelling("type of moments", kMomentTypes, text); }

void OptimizerConfig::validate(const std::string& where) const {
  const SectionCheck check(where);
  const auto in_range = [](double value) { return value >= kLeast && value <= kMost; };
  check(in_range(learning_rate), "learning_rate", learning_rate, "a number from 1e-20 to 1e20: the optimizer computes in fp32");
  check(beta1 >= 0.0 && beta1 <= kLargestBeta, "beta1", beta1, "a number from 0 to 1 - 1e-7: the optimizer computes in fp32");
  check(beta2 >= 0.0 && beta2 <= kLargestBeta, "beta2", beta2, "a number from 0 to 1 - 1e-7: the optimizer computes in fp32");
  const bool follows = moments == MomentType::Full || std::max(beta1, beta2) <= kLargestRoundedBeta;
  check(follows, "moments", to_string(moments),
        join_text("full for beta1 ", beta1, " and beta2 ", beta2, ": above ", kLargestRoundedBeta,
                  " the changes of a moment are lost in rounding"));
  check(in_range(epsilon), "epsilon", epsilon, "a number from 1e-20 to 1e20: the optimizer computes in fp32");
  check(weight_decay >= 0.0 && weight_decay <= kMost, "weight_decay", weight_decay, "a number from 0 to 1e20");
  check(clip_norm == 0.0 || in_range(clip_norm), "clip_norm", clip_norm, "0 (no clipping), or a number from 1e-20 to 1e20");
  check(warmup_steps >= 0, "warmup_steps", warmup_steps, "0 or more");
  check(min_ratio >= 0.0 && min_ratio <= 1.0, "min_ratio", min_ratio, "a number in [0, 1]");
  check(decay_fraction >= 0.0 && decay_fraction <= 1.0, "decay_fraction", decay_fraction, "a number in [0, 1]");
}

}  // namespace switchyard
