#pragma once
// Settings of the optimizer and of its learning-rate schedule.

#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard {

enum class ScheduleKind {
  Constant,  // warm-up, then the peak
  Cosine,    // warm-up, then half a cosine down to min_ratio at the last step
  Wsd,       // warm-up, stable, then a straight line down to min_ratio over the last decay_fraction of all steps
};
[[nodiscard]] std::string to_string(const ScheduleKind& value);
void parse(std::string_view text, ScheduleKind& value);

/// In which type the moments are kept between steps. Each step computes with them in that of the weights.
enum class MomentType {
  Full,      // that of the weights: fp32
  BFloat16,  // half of the memory and of its traffic; as arXiv 2412.19437, section 3.3.3, trained with
};
[[nodiscard]] std::string to_string(const MomentType& value);
void parse(std::string_view text, MomentType& value);

struct OptimizerConfig {
  double learning_rate = 2e-3;  // the peak
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  MomentType moments = MomentType::Full;
  double weight_decay = 0.1;    // decoupled; matrices only, see Parameter::decay
  double clip_norm = 1.0;       // largest global norm of the gradient; 0: no clipping
  ScheduleKind schedule = ScheduleKind::Cosine;
  int64_t warmup_steps = 20;
  double min_ratio = 0.1;       // learning rate of the last step over the peak
  double decay_fraction = 0.2;  // Wsd only: share of all steps in the decay

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("learning_rate", learning_rate, "peak learning rate of AdamW");
    visit("beta1", beta1, "decay of the first moment");
    visit("beta2", beta2, "decay of the second moment");
    visit("epsilon", epsilon, "added to the root of the second moment");
    visit("moments", moments, "type the moments are kept in: full (that of the weights) or bfloat16");
    visit("weight_decay", weight_decay, "decoupled weight decay of matrices; norms have none");
    visit("clip_norm", clip_norm, "largest global gradient norm, 0 for no clipping");
    visit("schedule", schedule, "constant, cosine or wsd");
    visit("warmup_steps", warmup_steps, "steps of linear warm-up");
    visit("min_ratio", min_ratio, "learning rate of the last step over the peak");
    visit("decay_fraction", decay_fraction, "wsd: share of the steps in the final decay");
  }
  void validate(const std::string& where) const;

  bool operator==(const OptimizerConfig&) const = default;
};

}  // namespace switchyard
