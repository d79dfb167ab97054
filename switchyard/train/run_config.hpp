#pragma once
// Everything that defines one run. A run folder holds it resolved, as config.toml.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "switchyard/balance/step_balance.hpp"
#include "switchyard/core/config.hpp"
#include "switchyard/data/batcher.hpp"
#include "switchyard/model/config.hpp"
#include "switchyard/train/execution_config.hpp"
#include "switchyard/train/optimizer_config.hpp"

namespace switchyard {

/// [data]: where the data set lies, and the fields of the batcher beside it.
struct RunDataConfig {
  std::string path = "data/mix8";
  BatcherConfig batcher;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("path", path, "folder of the data set, as `switchyard data build` writes it");
    batcher.for_each_field(visit);
  }
  void validate(const std::string& where) const;

  bool operator==(const RunDataConfig&) const = default;
};

struct CheckpointConfig {
  int64_t every = 100;    // steps; 0: only at the end and when interrupted
  int64_t keep_last = 2;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("every", every, "steps between checkpoints, 0 for only at the end");
    visit("keep_last", keep_last, "checkpoints that are kept");
  }
  void validate(const std::string& where) const;

  bool operator==(const CheckpointConfig&) const = default;
};

struct EvaluationConfig {
  int64_t every = 0;                  // steps; 0: only at the end
  int64_t sequences_per_domain = 64;  // held out; 512 in total is the rule
  int64_t permutations = 200;         // behind the nulls

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("every", every, "steps between evaluations, 0 for only at the end");
    visit("sequences_per_domain", sequences_per_domain, "held-out sequences of each domain; 512 in all is the rule");
    visit("permutations", permutations, "document permutations behind the nulls");
  }
  void validate(const std::string& where) const;

  bool operator==(const EvaluationConfig&) const = default;
};

struct RunConfig {
  std::string name = "run";
  std::string arm;      // of a testbed; empty: the name
  int64_t seed = 0;
  int64_t steps = 300;  // optimizer steps
  RunDataConfig data;
  ModelConfig model;
  BalanceConfig balance;
  OptimizerConfig optimizer;
  ExecutionConfig execution;
  CheckpointConfig checkpoint;
  EvaluationConfig evaluation;

  template <class Visitor>
  void for_each_field(Visitor&& visit) {
    visit("name", name, "name of the run");
    visit("arm", arm, "arm of the testbed; empty: the name");
    visit("seed", seed, "seed of weights, data order and routers");
    visit("steps", steps, "optimizer steps");
    visit("data", data, "data set and batches");
    visit("model", model, "model");
    visit("balance", balance, "load balancing");
    visit("optimizer", optimizer, "AdamW and its schedule");
    visit("execution", execution, "how a step is carried out");
    visit("checkpoint", checkpoint, "checkpoints");
    visit("evaluation", evaluation, "held-out evaluation");
  }
  void validate(const std::string& where) const;

  bool operator==(const RunConfig&) const = default;
};

/// Every key with its value in TOML spelling: {"model.width", "128"}.
[[nodiscard]] std::map<std::string, std::string> flatten(const RunConfig& config);

/// A key that two configurations answer differently.
struct ConfigDifference {
  std::string key;
  std::string before;
  std::string after;
};
[[nodiscard]] std::vector<ConfigDifference> compare(const RunConfig& before, const RunConfig& after);

/// True where a resumed run may differ from what it was started with: names, length, and how it is carried out, saved and
/// evaluated; not what defines model, data, balancing, optimizer or number type.
[[nodiscard]] bool may_change_on_resume(const std::string& key);

}  // namespace switchyard
