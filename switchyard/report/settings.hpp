#pragma once
// What runs were trained with, read from their resolved configurations line by line: the report knows no key but those that it
// puts in words.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "switchyard/measure/run_log.hpp"

namespace switchyard {

/// Key -> value as it is written there: "balance.scope" -> "\"optimizer_batch\"". Tables of an array are numbered,
/// "balance.terms[0].scope".
using Settings = std::map<std::string, std::string>;

/// Lines that are neither a table's head nor key = value are passed over.
[[nodiscard]] Settings read_settings(std::string_view config_toml);

/// Whether another value makes another training: not name, arm and seed, nor how it is executed, evaluated and saved.
[[nodiscard]] bool decides_training(std::string_view key);

/// Keys that decide training and have different values in two of the runs. A key that a run does not have says nothing, for
/// another version or program wrote it; but a further loss that only one run has is a difference.
[[nodiscard]] std::vector<std::string> differing_keys(const std::vector<const Settings*>& runs);

/// Whether it decides data order and initial weights of a seed: data and model, the router aside.
[[nodiscard]] bool decides_beginning(std::string_view key);

/// Keys that decide the beginning and that some of the runs have, but not all.
[[nodiscard]] std::vector<std::string> beginning_keys_of_some(const std::vector<const Settings*>& runs);

/// "-" where it is missing.
[[nodiscard]] std::string value_of(const Settings& settings, const std::string& key);

/// Everything that balances a run, such as "lbl 0.1 over optimizer_batch; z-loss 0.001; choice by bias"; or "no balancing".
[[nodiscard]] std::string balancing_text(const StartRecord& start, const Settings& settings);

}  // namespace switchyard
