#pragma once
// How a step is carried out. None of it changes what is computed, up to rounding.

#include <cstdint>
#include <string>
#include <string_view>

#include "switchyard/model/config.hpp"

namespace switchyard {

/// How a balancing scope that needs the whole step gets its counts before the first backward.
enum class ExactOrder {
  Retain,     // all forwards, then all backwards: activations of the whole step are held
  Prepass,    // a no-grad forward of every micro-batch counts, then the step runs micro-batch by micro-batch
  Recompute,  // as Retain, with only the inputs of layers held: the counting forward is the first forward
};
enum class ForwardPacking {
  Separate,  // one forward per micro-batch
  Together,  // all micro-batches of the step in one forward, declared as balance groups; faster for small models
};
enum class OnReplayMismatch {
  Error,   // StateError when the second forward chooses other experts than the pre-pass counted
  Replay,  // the recorded choices are used, and the number of tokens that would have chosen otherwise is reported
};

enum class ExpertPlacement {
  Replicated,  // every rank holds all experts; their gradients are summed over ranks
  Sharded,     // each rank holds an equal share of them, and tokens travel to the rank that holds their expert
};

[[nodiscard]] std::string to_string(const ExactOrder& value);
[[nodiscard]] std::string to_string(const ForwardPacking& value);
[[nodiscard]] std::string to_string(const OnReplayMismatch& value);
[[nodiscard]] std::string to_string(const ExpertPlacement& value);
void parse(std::string_view text, ExactOrder& value);
void parse(std::string_view text, ForwardPacking& value);
void parse(std::string_view text, OnReplayMismatch& value);
void parse(std::string_view text, ExpertPlacement& value);

struct ExecutionConfig {
  ComputeType dtype = ComputeType::Auto;
  ExactOrder exact = ExactOrder::Retain;
  Recompute recompute = Recompute::None;
  ForwardPacking forward = ForwardPacking::Together;
  OnReplayMismatch on_replay_mismatch = OnReplayMismatch::Error;
  ExpertPlacement experts = ExpertPlacement::Replicated;
  int64_t threads = 0;  // of each rank; 0: as many as the machine has, or OMP_NUM_THREADS says
  /// A rank that died is noticed at once by its launcher. This is for one that hangs, and must be longer than what the first rank
  /// does alone: writing a checkpoint, the permutations of an evaluation.
  int64_t time_limit = 600;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("dtype", dtype, "compute type: auto, float32, bfloat16 or float64");
    visit("exact", exact, "order for scopes that need the whole step: retain, prepass or recompute");
    visit("recompute", recompute, "activation recomputation: none or layers");
    visit("forward", forward, "micro-batches of a step in forwards of their own (separate) or in one (together)");
    visit("on_replay_mismatch", on_replay_mismatch, "routing that a pre-pass did not foresee: error or replay");
    visit("experts", experts, "experts on ranks: replicated or sharded");
    visit("threads", threads, "threads of tensor operations, 0 for the default");
    visit("time_limit", time_limit, "seconds that ranks wait for each other");
  }
  void validate(const std::string& where) const;

  bool operator==(const ExecutionConfig&) const = default;
};

}  // namespace switchyard
