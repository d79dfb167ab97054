#include "switchyard/testbed/config.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/testbed/alike.hpp"
#include "switchyard/testbed/claims.hpp"

namespace switchyard {
namespace {

bool is_folder_name(const std::string& name) {
  const auto allowed = [](unsigned char letter) {
    return std::isalnum(letter) != 0 || letter == '_' || letter == '-' || letter == '.';
  };
  return !name.empty() && name.front() != '.' && std::all_of(name.begin(), name.end(), allowed);
}

void check_seeds(const std::vector<int64_t>& seeds, const std::string& where) {
  std::set<int64_t> seen;
  for (const int64_t seed : seeds) {
    SWITCHYARD_CHECK(seed >= 0, ConfigError, where, ": seed ", seed, " is negative; expected 0 or more");
    SWITCHYARD_CHECK(seen.insert(seed).second, ConfigError, where, ": seed ", seed, " is given twice");
  }
}

void check_arm(const ArmConfig& arm, const std::string& where) {
  SWITCHYARD_CHECK(is_folder_name(arm.name), ConfigError, where, ": name = ", toml_value(arm.name),
                   "; it names folders: expected letters, digits, '_', '-' and '.'");
  check_seeds(arm.seeds, where + ".seeds");
  for (const std::string& change : arm.overrides) {
    const std::string key = override_path(change).front();
    SWITCHYARD_CHECK(key != "seed" && key != "name" && key != "arm", ConfigError, where, ".overrides: '", key,
                     "' is set by the testbed; for other seeds set seeds of the arm");
  }
}

std::vector<int64_t> seeds_of(const TestbedConfig& config, const ArmConfig& arm) {
  return arm.seeds.empty() ? config.seeds : arm.seeds;
}

const ArmConfig& find_arm(const TestbedConfig& config, const std::string& name, const std::string& where) {
  std::vector<std::string> known;
  for (const ArmConfig& arm : config.arms) {
    if (arm.name == name) return arm;
    known.push_back(arm.name);
  }
  throw ConfigError(join_text(where, ": ", unknown_name("arm", name, known)));
}

// A claim that no seed can decide would look like one that was checked.
void check_claim_config(const TestbedConfig& config, const ClaimConfig& claim, const std::string& where) {
  const std::vector<std::string> metrics = claim_metric_names();
  SWITCHYARD_CHECK(std::find(metrics.begin(), metrics.end(), claim.metric) != metrics.end(), ConfigError, where,
                   ".metric: ", unknown_name("metric", claim.metric, metrics));
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  SWITCHYARD_CHECK(!std::isnan(claim.at_least) && !std::isnan(claim.at_most), ConfigError, where,
                   ": at_least or at_most is nan; expected a number");
  SWITCHYARD_CHECK(claim.at_least > -kInfinity || claim.at_most < kInfinity, ConfigError, where,
                   ": neither at_least nor at_most is given; the claim would hold for anything");
  SWITCHYARD_CHECK(claim.at_least < kInfinity && claim.at_most > -kInfinity, ConfigError, where, ": at_least = ", claim.at_least,
                   ", at_most = ", claim.at_most, "; no value could meet that: expected finite bounds, one or both");
  SWITCHYARD_CHECK(claim.at_least <= claim.at_most, ConfigError, where, ": at_least = ", claim.at_least,
                   " is above at_most = ", claim.at_most);
  std::vector<int64_t> seeds = seeds_of(config, find_arm(config, claim.arm, where + ".arm"));
  if (claim.against.empty()) return;
  SWITCHYARD_CHECK(claim.arm != claim.against, ConfigError, where, ": against = '", claim.against,
                   "' is the arm itself; the difference would be 0 whatever was trained");
  const std::vector<int64_t> others = seeds_of(config, find_arm(config, claim.against, where + ".against"));
  const bool shared = std::any_of(seeds.begin(), seeds.end(), [&](int64_t seed) {
    return std::find(others.begin(), others.end(), seed) != others.end();
  });
  SWITCHYARD_CHECK(shared, ConfigError, where, ": arms '", claim.arm, "' and '", claim.against,
                   "' have no seed in common, so nothing can be compared");
}

RunConfig arm_config(const TestbedConfig& config, const ArmConfig& arm) {
  const std::string name = "arm '" + arm.name + "'";
  try {
    RunConfig run;
    read_config(parse_config_text(to_toml(config.run), name, arm.overrides), run);
    return run;
  } catch (const ConfigError& error) {  // most name the arm as the file that they found it in; those of --set do not
    const std::string text = error.what();
    throw ConfigError(text.starts_with(name) ? text : join_text(name, ": ", text));
  }
}

// A resolved file has them with their defaults.
void check_shared_keys(const ConfigNode& run) {
  int64_t seed = RunConfig().seed;
  if (run.has("seed")) run.get("seed", seed);
  SWITCHYARD_CHECK(seed == RunConfig().seed, ConfigError, run.where("seed"), " is ", seed,
                   ", but the testbed sets the seed of each run; give seeds = [", seed, "] beside name, or --set seeds=[", seed,
                   "]");
  std::string arm;
  if (run.has("arm")) run.get("arm", arm);
  SWITCHYARD_CHECK(arm.empty(), ConfigError, run.where("arm"), " is '", arm, "', but arms are named in [[arms]]");
}

}  // namespace

void TestbedConfig::validate(const std::string& where) const {
  SWITCHYARD_CHECK(is_folder_name(name), ConfigError, where, ": name = ", toml_value(name),
                   "; it names a folder: expected letters, digits, '_', '-' and '.'");
  SWITCHYARD_CHECK(!arms.empty(), ConfigError, where, ": no arms; expected one [[arms]] or more");
  SWITCHYARD_CHECK(!seeds.empty(), ConfigError, where, ": seeds = []; expected one or more");
  check_seeds(seeds, where + ": seeds");
  std::set<std::string> names;
  for (size_t index = 0; index < arms.size(); ++index) {
    check_arm(arms[index], join_text(where, ": arms[", index, "]"));
    SWITCHYARD_CHECK(names.insert(arms[index].name).second, ConfigError, where, ": arms[", index, "]: a second arm named '",
                     arms[index].name, "'");
  }
  if (!baseline.empty()) find_arm(*this, baseline, where + ": baseline");
  for (size_t index = 0; index < claims.size(); ++index) {
    check_claim_config(*this, claims[index], join_text(where, ": claims[", index, "]"));
  }
}

TestbedConfig read_testbed_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  const ConfigNode node = parse_config_file(path, overrides);
  if (node.has("run")) check_shared_keys(node.child("run"));
  TestbedConfig config;
  if (node.has("base")) {
    node.get("base", config.base);
    const std::filesystem::path base = path.parent_path() / config.base;
    SWITCHYARD_CHECK(config.base.empty() || std::filesystem::exists(base), ConfigError, node.where("base"), ": no file ",
                     base.string());
    if (!config.base.empty()) {
      const ConfigNode shared = parse_config_file(base);
      check_shared_keys(shared);
      read_config(shared, config.run);
    }
  }
  read_config(node, config);
  return config;
}

std::vector<PlannedRun> expand(const TestbedConfig& config) {
  std::vector<RunConfig> configs;
  std::set<int64_t> seeds;
  for (const ArmConfig& arm : config.arms) {
    configs.push_back(arm_config(config, arm));
    for (const int64_t seed : seeds_of(config, arm)) seeds.insert(seed);
  }
  std::vector<PlannedRun> runs;
  for (const int64_t seed : seeds) {
    for (size_t index = 0; index < config.arms.size(); ++index) {
      const ArmConfig& arm = config.arms[index];
      const std::vector<int64_t> own = seeds_of(config, arm);
      if (std::find(own.begin(), own.end(), seed) == own.end()) continue;
      PlannedRun run{join_text(arm.name, "-seed", seed), arm.name, seed, configs[index]};
      run.config.name = run.name;
      run.config.arm = run.arm;
      run.config.seed = seed;
      runs.push_back(std::move(run));
    }
  }
  check_claims_compare(config, runs);
  return runs;
}

}  // namespace switchyard
