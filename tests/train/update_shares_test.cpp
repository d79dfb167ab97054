// The optimizer's work divided over ranks against every rank doing all of it: the same bits.

#include "switchyard/train/update_shares.hpp"

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include "switchyard/comm/threads.hpp"
#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/model/weights.hpp"
#include "switchyard/model/weights_file.hpp"
#include "switchyard/train/adamw.hpp"
#include "switchyard/train/gradients.hpp"
#include "switchyard/train/shards.hpp"
#include "tests/train/ranked_runs.hpp"
#include "tests/train/ranked_steps.hpp"

namespace switchyard {
namespace {

constexpr int64_t kRows = 12;  // divided by 2 and 3, and 4

enum class Update { Everywhere, Shared };

// Large enough to be divided, in halves and whole, a number of rows that no rank divides, too small, frozen.
struct SomeModel {
  std::deque<Parameter> parameters;
  ParameterRefs refs;

  SomeModel() {
    add("divided", {kRows, 64, 32}, at::kBFloat16);
    add("also divided", {kRows * 512, 4}, at::kBFloat16);
    add("odd rows", {kRows * 512 + 1, 4}, at::kBFloat16);
    add("small", {kRows, 4}, at::kBFloat16);
    add("in fp32", {kRows, 2048}, at::kFloat);
    add("frozen", {kRows, 2048}, at::kBFloat16);
    parameters.back().training = Training::Frozen;
    for (Parameter& parameter : parameters) refs.push_back(&parameter);
  }

  void add(const std::string& name, c10::IntArrayRef sizes, at::ScalarType compute) {
    Parameter parameter;
    parameter.name = name;
    parameter.master = Rng(1, name).normal_tensor(sizes, 1.0);
    attach_compute(parameter, compute);
    parameters.push_back(parameter);
  }

  // In the second step some ranks have summed several backwards, the last none at all of one parameter.
  void set_gradients(int64_t step, const Communicator& comm) {
    for (Parameter& parameter : parameters) {
      Rng rng(2, parameter.name, {static_cast<uint64_t>(step), static_cast<uint64_t>(comm.rank())});
      parameter.grad = rng.normal_tensor(sizes_of(parameter), 0.1).to(parameter.compute.scalar_type());
      if (step == 1 && comm.rank() == 0) parameter.grad = parameter.grad.to(at::kFloat);
    }
    if (step == 1 && comm.rank() == comm.size() - 1) parameters[1].grad.reset();
  }
};

struct Outcome {
  std::vector<at::Tensor> computes;
  TensorMap masters, moments;  // whole, of the first rank
  std::vector<double> norms;
  int64_t divided = 0;
};

Outcome train(int64_t num_ranks, Update update) {
  Outcome outcome;
  run_ranks(num_ranks, [&](Communicator& comm) {
    SomeModel model;
    if (update == Update::Shared) share_updates(model.refs, comm);
    AdamW optimizer(model.refs, OptimizerConfig());
    std::vector<double> norms;
    for (int64_t step = 0; step < 3; ++step) {
      model.set_gradients(step, comm);
      sum_gradients(model.refs, comm);
      norms.push_back(global_gradient_norm(model.refs, comm));
      optimizer.step(0.01);
      gather_updates(model.refs, comm);
    }
    TensorMap masters;
    for (const Parameter& parameter : model.parameters) masters[parameter.name] = updated_rows(parameter, master_of(parameter));
    masters = make_all(whole_tensors(to_save(masters), kept_rows(model.refs), comm));
    const TensorMap moments = make_all(whole_tensors(to_save(optimizer.moments()), kept_rows(model.refs), comm));
    // The compute copies of the last rank, the whole masters and moments of the first.
    if (comm.rank() == comm.size() - 1) {
      for (const Parameter& parameter : model.parameters) outcome.computes.push_back(parameter.compute);
    }
    if (comm.rank() > 0) return;
    for (const Parameter& parameter : model.parameters) outcome.divided += shares_update(parameter) ? 1 : 0;
    outcome.masters = masters;
    outcome.moments = moments;
    outcome.norms = norms;
  });
  return outcome;
}

TEST(UpdateShares, GiveTheBitsOfEveryRankDoingEverything) {
  for (const int64_t num_ranks : {2, 3, 4}) {
    const Outcome whole = train(num_ranks, Update::Everywhere);
    const Outcome shared = train(num_ranks, Update::Shared);
    EXPECT_EQ(whole.divided, 0);
    EXPECT_EQ(shared.divided, 3);
    ASSERT_EQ(shared.computes.size(), whole.computes.size());
    for (size_t i = 0; i < whole.computes.size(); ++i) EXPECT_TRUE(shared.computes[i].equal(whole.computes[i])) << i;
    for (const auto& [name, tensor] : whole.masters) EXPECT_TRUE(shared.masters.at(name).equal(tensor)) << name;
    ASSERT_EQ(shared.moments.size(), whole.moments.size());
    for (const auto& [name, tensor] : whole.moments) EXPECT_TRUE(shared.moments.at(name).equal(tensor)) << name;
    for (size_t i = 0; i < whole.norms.size(); ++i) EXPECT_NEAR(shared.norms[i], whole.norms[i], 1e-6 * whole.norms[i]);
  }
}

TEST(UpdateShares, MomentsExistOnceOverAllRanksAndComeBack) {
  run_ranks(2, [](Communicator& comm) {
    SomeModel model;
    share_updates(model.refs, comm);
    AdamW optimizer(model.refs, OptimizerConfig());
    EXPECT_EQ(optimizer.moments().at("divided.first").size(0), kRows / 2);
    EXPECT_EQ(optimizer.moments().at("in fp32.first").size(0), kRows / 2);
    EXPECT_EQ(optimizer.moments().at("small.first").size(0), kRows);
    TensorMap whole;
    for (const Parameter& parameter : model.parameters) {
      if (parameter.training == Training::Frozen) continue;
      for (const char* suffix : {".first", ".second"}) whole[parameter.name + suffix] = Rng(3, suffix).normal_tensor(sizes_of(parameter), 1.0);
    }
    optimizer.restore(take_own(whole, kept_rows(model.refs)), 1);
    EXPECT_TRUE(optimizer.moments().at("divided.second").equal(whole.at("divided.second").narrow(0, kRows / 2 * comm.rank(), kRows / 2)));
  });
}

// Only one rank sums the bad row; all end, and say whose it is.
TEST(UpdateShares, AGradientThatIsNotFiniteEndsAllRanks) {
  run_ranks(2, [](Communicator& comm) {
    SomeModel model;
    share_updates(model.refs, comm);
    model.set_gradients(0, comm);
    model.parameters[0].grad[kRows - 1].fill_(std::numeric_limits<float>::quiet_NaN());
    sum_gradients(model.refs, comm);
    try {
      (void)global_gradient_norm(model.refs, comm);
      ADD_FAILURE() << "no error on rank " << comm.rank();
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("the gradient of 'divided' has norm"));
    }
  });
}

class SharedUpdateRun : public RankedRunTest {
 protected:
  [[nodiscard]] RunConfig run() const {
    RunConfig config = this->config();
    config.execution.dtype = ComputeType::BFloat16;
    config.model.width = 32;
    config.model.expert_width = 32;
    config.model.num_experts = 8;  // 8 * 2 * 32 * 32 numbers: just divided
    return config;
  }
};

TEST_F(SharedUpdateRun, ResumedItHasTheSameBits) {
  start(2, run(), "whole");
  start_and_stop(2, run(), "parts", 3, 1);
  resume(2, run(), "parts");
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    EXPECT_EQ(read_file(newest("whole") / file), read_file(newest("parts") / file)) << file;
  }
}

// A limit on the size of files stands for a full disk. The ranks that help to make the file must not wait for ever.
TEST_F(SharedUpdateRun, AFullDiskEndsAllRanks) {
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const rlimit limit{100'000, old_limit.rlim_max};  // some, not all, of the weights
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::vector<std::string> texts = errors(2, run(), run());
  ::setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  for (const std::string& text : texts) EXPECT_THAT(text, ::testing::HasSubstr("model.safetensors"));
}

// SimBal's gradient is whole on every rank and joins those of the backward, of which a rank has its rows only.
TEST_F(SharedUpdateRun, SimBalJoinsTheGradientsOfADividedRouter) {
  RunConfig config = this->config();
  config.model.width = 256;
  config.model.num_experts = 64;  // 64 * 256 numbers: just divided
  config.model.expert_width = 4;
  config.balance.simbal_coefficient = 0.1;
  start(1, config, "one");
  start(2, config, "two");
  expect_near_run("one", "two");
}

// Checkpoints are whole: what two ranks began, one and four go on with.
TEST_F(SharedUpdateRun, GoesOnAtAnyNumberOfRanks) {
  for (const int64_t after : {1, 4}) {
    const std::string name = "to-" + std::to_string(after);
    start_and_stop(2, run(), name, 3, 0);
    const TensorMap model = load_tensors(newest(name) / "model.safetensors").tensors;
    const TensorMap moments = load_tensors(newest(name) / "optimizer.safetensors").tensors;
    for (const auto& [weight, tensor] : model) EXPECT_EQ(moments.at(weight + ".first").sizes(), tensor.sizes()) << weight;
    resume(after, run(), name);
  }
}

}  // namespace
}  // namespace switchyard
