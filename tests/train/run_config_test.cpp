// The configuration of a run: TOML and back, bad values by key, and what a resumed run may change.

#include "switchyard/train/run_config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/text.hpp"
#include "switchyard/train/memory_need.hpp"

namespace switchyard {
namespace {

RunConfig read(const std::string& text) {
  RunConfig config;
  read_config(parse_config_text(text, "run.toml"), config);
  return config;
}

std::string error_of(const std::string& text) {
  try {
    (void)read(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(RunConfig, TomlRoundTrip) {
  RunConfig config = read(R"toml(
name = "a \"quoted\" name"
steps = 7
[data]
path = "somewhere"
micro_batches = 3
domains = ["de", "fr"]
weights = { de = 0.25, fr = 0.75 }
[model]
width = 64
[model.router]
name = "frozen_random"
[balance]
coefficient = 0.0
scope = "sequences(4)"
[optimizer]
learning_rate = 1e-3
schedule = "wsd"
[execution]
exact = "prepass"
on_replay_mismatch = "replay"
forward = "separate"
)toml");
  EXPECT_EQ(config.data.batcher.micro_batches, 3);
  EXPECT_EQ(config.data.path, "somewhere");
  EXPECT_EQ(config.model.router.name, "frozen_random");
  EXPECT_EQ(config.balance.scope.num_sequences, 4);
  EXPECT_EQ(config.optimizer.schedule, ScheduleKind::Wsd);
  EXPECT_EQ(config.execution.exact, ExactOrder::Prepass);
  EXPECT_EQ(config.execution.forward, ForwardPacking::Separate);
  EXPECT_EQ(read(to_toml(config)), config);
}

TEST(RunConfig, BadValuesNameFileLineAndKey) {
  EXPECT_THAT(error_of("steps = 0"), testing::HasSubstr("run.toml: steps is 0; expected 1 or more"));
  EXPECT_THAT(error_of("[checkpoint]\nkeep_last = 0"), testing::HasSubstr("checkpoint.keep_last is 0; expected 1"));
  EXPECT_THAT(error_of("[evaluation]\npermutations = 0"), testing::HasSubstr("evaluation.permutations is 0"));
  EXPECT_THAT(error_of("[execution]\nthreads = 5000"), testing::HasSubstr("execution.threads is 5000; expected 0 (the default) to 1024"));
  EXPECT_THAT(error_of("[execution]\ntime_limit = 0"), testing::HasSubstr("execution.time_limit is 0; expected 1 to 31536000 seconds"));
  EXPECT_THAT(error_of("[execution]\ntime_limit = 31536001"), testing::HasSubstr("expected 1 to 31536000 seconds (a year)"));
  EXPECT_THAT(error_of("[execution]\ntime_limit = 9223372036854775807"), testing::HasSubstr("execution.time_limit is 9223372036854775807"));
  EXPECT_EQ(error_of("[execution]\ntime_limit = 31536000"), "no error");
  EXPECT_THAT(error_of("[model.router]\ninit_deviation = -1.0"), testing::HasSubstr("model.router.init_deviation is -1; expected a number from 0"));
  EXPECT_THAT(error_of("steps = 9\n[balance]\nfrom_step = 9"), testing::HasSubstr("balance.from_step is 9; expected a step below"));
  EXPECT_THAT(error_of("steps = 9\n[[balance.terms]]\nfrom_step = 10"),
              testing::HasSubstr("balance.terms[0].from_step is 10; expected a step below steps = 9"));
  EXPECT_THAT(error_of("[balance.selection]\nrate = 0.5"), testing::HasSubstr("without a rule"));
  EXPECT_THAT(error_of("[balance.selection]\ndecay = 0.5"), testing::HasSubstr("without a rule"));
  EXPECT_THAT(error_of("[balance.selection]\nrule = 'bias'\nrate = 0.0"), testing::HasSubstr("would then do nothing"));
  EXPECT_THAT(error_of("[balance.selection]\nrule = 'bias'\ndecay = 0.5"), testing::HasSubstr("does not have"));
  EXPECT_THAT(error_of("[balance.selection]\nrule = 'quantile'\nrate = 0.5"), testing::HasSubstr("does not have"));
  EXPECT_THAT(error_of("[optimizer]\nepsilon = 1e-46"), testing::HasSubstr("optimizer.epsilon is 1e-46; expected a number from 1e-20 to 1e20"));
  EXPECT_THAT(error_of("[evaluation]\npermutations = 100001"), testing::HasSubstr("evaluation.permutations is 100001; expected 1 to 100000"));
  EXPECT_THAT(error_of("[model]\ndense_width = -1"), testing::HasSubstr("model.dense_width is -1; expected at least 1"));
  EXPECT_THAT(error_of("\n[model]\nrouter.name = 'topk'"),
              testing::AllOf(testing::HasSubstr("run.toml:3: model.router.name is \"topk\"; expected one of top_k, "), testing::HasSubstr("did you mean 'top_k'?")));
  EXPECT_EQ(error_of("steps = 3\n[balance]\nmethod = 'none'\nfrom_step = 5"), "no error");
  EXPECT_THAT(error_of("[data]\npath = ''"), testing::HasSubstr("data.path is empty"));
  EXPECT_THAT(error_of("[execution]\nexact = 'recompute'"), testing::HasSubstr("execution.recompute is none; expected layers"));
  EXPECT_THAT(error_of("[execution]\non_replay_mismatch = 'replay'"), testing::HasSubstr("execution.on_replay_mismatch"));
  EXPECT_THAT(error_of("\n[execution]\nforward = 'seperate'"),
              testing::AllOf(testing::HasSubstr("run.toml:3: execution.forward"),
                             testing::HasSubstr("did you mean 'separate'")));
  EXPECT_THAT(error_of("[optimizer]\nlearning_rat = 1"), testing::HasSubstr("did you mean 'learning_rate'"));
}

// The system takes a name up to its NUL; a screen takes the others for commands.
TEST(RunConfig, NamesHaveNoControlCharacters) {
  for (const char* name : {R"("x\u0000y")", R"("x\u001b[31m")", R"("x\u007f")"}) {
    EXPECT_THAT(error_of(join_text("name = ", name)), testing::HasSubstr("name is \"x\\")) << name;
    EXPECT_THAT(error_of(join_text("arm = ", name)), testing::HasSubstr("arm is \"x\\")) << name;
  }
  EXPECT_THAT(error_of(R"(data.path = "data\u0000mix8")"), testing::AllOf(testing::HasSubstr("data.path is \"data\\u0000mix8\""), testing::HasSubstr("NUL")));
  EXPECT_EQ(read(R"(data.path = "two\nlines")").data.path, "two\nlines");
}

TEST(RunConfig, NumbersMustBeFinite) {
  for (const char* key : {"optimizer.learning_rate", "optimizer.epsilon", "optimizer.weight_decay", "optimizer.clip_norm",
                          "model.rope_theta", "model.norm_epsilon", "model.init_deviation", "model.router.init_deviation"}) {
    for (const char* value : {"inf", "nan"}) {
      EXPECT_THAT(error_of(join_text(key, " = ", value)), testing::ContainsRegex("expected (a finite|a|0 .no clipping., or a) number")) << key;
    }
  }
}

// fp32 would make 0 or infinity of them, and a run would do nothing, or end with advice that does not help.
TEST(RunConfig, NumbersMustBeWhatFp32Knows) {
  for (const char* given : {"optimizer.learning_rate = 1e-60", "optimizer.learning_rate = 1e39", "optimizer.epsilon = 1e39", "optimizer.clip_norm = 1e-60",
                            "optimizer.weight_decay = 1e39", "model.norm_epsilon = 1e39", "model.init_deviation = 1e10", "model.router.init_deviation = 1e10"}) {
    EXPECT_THAT(error_of(given), testing::HasSubstr("expected ")) << given;
  }
  for (const char* key : {"coefficient", "z_coefficient", "simbal_coefficient", "orthogonality_coefficient"}) {
    EXPECT_THAT(error_of(join_text("balance.", key, " = 1e39")), testing::HasSubstr("expected a number from 0 to 1e20")) << key;
  }
  EXPECT_THAT(error_of("[balance.selection]\nrule = 'bias'\nrate = 1.5"), testing::HasSubstr("expected a number above 0 and up to 1"));
  EXPECT_EQ(error_of("[optimizer]\nclip_norm = 0.0"), "no error");
}

TEST(RunConfig, ARouterWithoutBalancingNamesWhatAsksForIt) {
  const std::string router = "[model.router]\nname = 'frozen_random'\n[balance]\n";
  EXPECT_THAT(error_of(router), testing::AllOf(testing::HasSubstr("run.toml: balance.coefficient is set; expected 0"),
                                               testing::HasSubstr("the router frozen_random takes no balancing")));
  EXPECT_EQ(error_of(router + "coefficient = 0.0"), "no error");
  EXPECT_THAT(error_of(router + "coefficient = 0.0\nz_coefficient = 0.1"), testing::HasSubstr("balance.z_coefficient is set; expected 0"));
  EXPECT_THAT(error_of(router + "method = 'none'\n[[balance.terms]]\ncoefficient = 0.1\n[balance.selection]\nrule = 'bias'"),
              testing::HasSubstr("balance.terms[0].coefficient, balance.selection.rule is set; expected 0"));
}

TEST(RunConfig, LoadNeedsAnExpertThatIsLeftOut) {
  const std::string all = "[model]\nnum_experts = 4\nnum_chosen = 4\n[balance]\nmethod = ";
  EXPECT_THAT(error_of(all + "'load_cv2'"), testing::HasSubstr("model.num_chosen is 4; expected fewer than num_experts = 4"));
  EXPECT_EQ(error_of(all + "'importance_cv2'"), "no error");
}

TEST(RunConfig, BalancingThatCannotActIsRefused) {
  const std::string all = "[model]\nnum_experts = 4\nnum_chosen = 4\n[balance]\n";
  EXPECT_THAT(error_of(all), testing::HasSubstr("balance.coefficient is 0.01; expected 0, because every token takes all 4 experts"));
  EXPECT_EQ(error_of(all + "coefficient = 0.0"), "no error");
  EXPECT_THAT(error_of(all + "coefficient = 0.0\n[[balance.terms]]\ncoefficient = 0.5"),
              testing::HasSubstr("balance.terms[0].coefficient is 0.5; expected 0"));
  EXPECT_EQ(error_of(all + "method = 'gshard'"), "no error");  // of first choices
  EXPECT_THAT(error_of(all + "method = 'none'\n[balance.selection]\nrule = 'bias'"),
              testing::HasSubstr("balance.selection.rule is bias; expected none, because every token takes all 4 experts"));
  const std::string single = "[model]\nnum_experts = 1\nnum_chosen = 1\nrouter.normalize = 'none'\n[balance]\nmethod = ";
  for (const char* method : {"lbl", "gshard", "importance_cv2", "variance"}) {  // all its probabilities are 1
    EXPECT_THAT(error_of(single + "'" + method + "'"), testing::HasSubstr("expected 0, because every token takes the only expert")) << method;
  }
  EXPECT_EQ(error_of(single + "'none'\nz_coefficient = 0.1"), "no error");
  const std::string one = "[model]\nnum_chosen = 1\nrouter.normalize = 'none'\n";
  EXPECT_EQ(error_of(one), "no error");
  EXPECT_THAT(error_of(one + "[balance]\northogonality_coefficient = 0.1"),
              testing::HasSubstr("balance.orthogonality_coefficient is 0.1; expected 0, because model.num_chosen = 1"));
}

TEST(RunConfig, ALoneChoiceMustNotWeighOne) {
  const std::string one = "[model]\nnum_chosen = 1\n";
  EXPECT_THAT(error_of(one), testing::HasSubstr("model.router.normalize is chosen_sum; expected none, because with"));
  EXPECT_EQ(error_of(one + "router.name = 'random'\n[balance]\ncoefficient = 0.0"), "no error");
}

RunConfig one_expert_layer() {
  RunConfig config;
  ModelConfig& model = config.model;
  model.vocab_size = 10;
  model.width = 4;
  model.num_layers = model.num_heads = model.num_kv_heads = model.num_chosen = 1;
  model.head_width = model.num_experts = 2;
  model.expert_width = 5;
  return config;
}

// 2 tables of 4*10, attention 2*4*(2+2), 2 experts of 3*4*5.
TEST(RunConfig, LeastMemoryByHand) {
  RunConfig config = one_expert_layer();
  EXPECT_EQ(least_memory(config, ComputeType::BFloat16, 1), (4 + 8) * (80 + 32 + 120));
  EXPECT_EQ(least_memory(config, ComputeType::Float64, 1), (8 + 16) * (80 + 32 + 120));
  EXPECT_EQ(least_memory(config, ComputeType::Float32, 2), 4 * (80 + 32 + 120) + 8 * (80 + 32 + 120) / 2);
  config.execution.experts = ExpertPlacement::Sharded;
  config.optimizer.moments = MomentType::BFloat16;
  EXPECT_EQ(least_memory(config, ComputeType::Float32, 2), 4 * (80 + 32 + 60) + 4 * (80 + 32 + 120) / 2);
}

TEST(RunConfig, MoreThanTheMachineHasIsRefused) {
  RunConfig config = one_expert_layer();
  config.model.num_experts = int64_t{1} << 40;
  EXPECT_THROW(check_memory(config, ComputeType::Float32, 1, 1, 24e9), ConfigError);
  const double two = 2 * (least_memory(one_expert_layer(), ComputeType::Float32, 2) +
                          least_step_memory(one_expert_layer(), ComputeType::Float32, 2));
  EXPECT_NO_THROW(check_memory(one_expert_layer(), ComputeType::Float32, 2, 2, two + 1));
  EXPECT_THROW(check_memory(one_expert_layer(), ComputeType::Float32, 2, 2, two - 1), ConfigError);
  EXPECT_GT(machine_memory(), 1e8);
}

// 3 micro-batches of 2 rows of 8 tokens; one layer of width 4.
TEST(RunConfig, TheTokensOfAStepMustFitToo) {
  RunConfig config = one_expert_layer();
  config.data.batcher.micro_batches = 3;
  config.data.batcher.sequences_per_micro_batch = 2;
  config.data.batcher.sequence_length = 8;
  config.execution.forward = ForwardPacking::Together;
  EXPECT_EQ(least_step_memory(config, ComputeType::BFloat16, 1), 48 * (40 + 2 * 4));
  EXPECT_EQ(least_step_memory(config, ComputeType::Float32, 3), 16 * (40 + 4 * 4));
  config.execution.forward = ForwardPacking::Separate;
  EXPECT_EQ(least_step_memory(config, ComputeType::Float64, 1), 48 * 40 + 16 * 8 * 4);
  const double all = least_memory(config, ComputeType::Float64, 1) + 48 * 40 + 16 * 8 * 4;
  EXPECT_NO_THROW(check_memory(config, ComputeType::Float64, 1, 1, all + 1));
  EXPECT_THAT([&] { check_memory(config, ComputeType::Float64, 1, 1, all - 1); },
              testing::ThrowsMessage<ConfigError>(testing::HasSubstr("fewer data.micro_batches")));
}

TEST(RunConfig, FlattenHasEveryLeafInTomlSpelling) {
  const auto values = flatten(RunConfig());
  EXPECT_EQ(values.at("steps"), "300");
  EXPECT_EQ(values.at("name"), "\"run\"");
  EXPECT_EQ(values.at("data.micro_batches"), "8");
  EXPECT_EQ(values.at("model.router.name"), "\"top_k\"");
  EXPECT_EQ(values.at("balance.scope"), "\"optimizer_batch\"");
  EXPECT_EQ(values.at("optimizer.weight_decay"), "0.1");
}

// What it says of a list of losses can be read as TOML again.
TEST(RunConfig, FlattenWritesListsOfSectionsInline) {
  EXPECT_EQ(flatten(RunConfig()).at("balance.terms"), "[]");
  const RunConfig config = read("[[balance.terms]]\nmethod = 'gshard'\nscope = 'micro_batch'\n[[balance.terms]]\ncoefficient = 0.5");
  const std::string text = flatten(config).at("balance.terms");
  EXPECT_THAT(text, testing::AllOf(testing::StartsWith("[{"), testing::EndsWith("}]"), testing::HasSubstr("method = \"gshard\""),
                                   testing::HasSubstr("}, {"), testing::HasSubstr("coefficient = 0.5"),
                                   testing::Not(testing::HasSubstr("\n"))));
  EXPECT_EQ(read("balance.terms = " + text), config);
}

TEST(RunConfig, CompareNamesWhatDiffers) {
  RunConfig other;
  other.model.width = 64;
  other.checkpoint.every = 5;
  const auto differences = compare(RunConfig(), other);
  ASSERT_EQ(differences.size(), 2U);
  EXPECT_EQ(differences[0].key, "checkpoint.every");
  EXPECT_EQ(differences[1].key, "model.width");
  EXPECT_EQ(differences[1].before, "128");
  EXPECT_EQ(differences[1].after, "64");
}

TEST(RunConfig, ResumedRunsMayChangeOnlyWhatDoesNotDefineThem) {
  for (const auto& [key, value] : flatten(RunConfig())) {
    const bool defines = key.starts_with("model.") || key.starts_with("balance.") || key.starts_with("optimizer.") ||
                         key == "seed" || (key.starts_with("data.") && key != "data.path") || key == "execution.dtype";
    EXPECT_EQ(may_change_on_resume(key), !defines) << key;
  }
}

}  // namespace
}  // namespace switchyard
