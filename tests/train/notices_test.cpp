// What a run says before its first step, and when.

#include "switchyard/train/notices.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "switchyard/model/compute_type.hpp"

namespace switchyard {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

RunStart begin() { return {.step = 0, .ranks = 1, .ranks_before = 1, .compute = ComputeType::Float32, .heldout_sequences = 512}; }

RunConfig plain() {
  RunConfig config;
  config.execution.dtype = ComputeType::Float32;
  return config;
}

// Of every loss that still counts over ranks, once a scope, and of no other.
TEST(Notices, AnotherNumberOfRanksIsTold) {
  const auto told = [](const BalanceTerm& first, const std::vector<BalanceTerm>& further) {
    RunConfig run = plain();
    run.balance.method = first.method;
    run.balance.scope = first.scope;
    run.balance.coefficient = first.coefficient;
    run.balance.terms = further;
    RunStart start = begin();
    start.step = 3;
    start.ranks_before = 2;
    const std::vector<std::string> all = standing_notices(run, start);
    return std::ranges::count(all, "the balancing scope prefix counts over 1 rank from here on, before over 2");
  };
  BalanceTerm prefix, whole, none, ended, weightless, lasting;
  parse("prefix", prefix.scope);
  none = ended = weightless = lasting = prefix;
  none.method = "none";
  ended.to_step = 3;
  lasting.to_step = 4;
  weightless.coefficient = 0.0;
  EXPECT_EQ(told(prefix, {}), 1);
  EXPECT_EQ(told(whole, {prefix}), 1);
  EXPECT_EQ(told(prefix, {prefix}), 1);
  EXPECT_EQ(told(whole, {lasting}), 1);
  EXPECT_EQ(told(whole, {}), 0);
  EXPECT_EQ(told(none, {}), 0);
  EXPECT_EQ(told(whole, {ended}), 0);
  EXPECT_EQ(told(weightless, {}), 0);
}

TEST(Notices, NothingIsSaidOfAPlainRun) { EXPECT_THAT(standing_notices(plain(), begin()), IsEmpty()); }

TEST(Notices, ShortEvaluationAndWarmUpAreToldOnce) {
  RunConfig config = plain();
  config.steps = 10;
  RunStart start = begin();
  start.heldout_sequences = 64;
  EXPECT_THAT(standing_notices(config, start), Contains(HasSubstr("evaluation runs over 64 held-out sequences")));
  EXPECT_THAT(standing_notices(config, start),
              Contains("optimizer.warmup_steps is 20 of 10 steps: the learning rate never reaches its peak"));
  start.step = 1;
  EXPECT_THAT(standing_notices(config, start), IsEmpty());
}

TEST(Notices, FewDocumentsAreToldOnce) {
  const auto told = [](const std::vector<DomainDocuments>& documents) {
    RunStart start = begin();
    start.heldout_documents = documents;
    return standing_notices(plain(), start);
  };
  EXPECT_THAT(told({{"ada", 20}, {"bob", 20}}), IsEmpty());
  EXPECT_THAT(told({{"ada", 20}, {"bob", 7}}), Contains(HasSubstr("domain 'bob' is evaluated on 7 held-out documents")));
  EXPECT_THAT(told({{"ada", 1}, {"bob", 1}}), Contains(HasSubstr("S is 0 whatever the router does")));
  EXPECT_THAT(told({{"ada", 20}}), Contains(HasSubstr("'ada' is the only domain")));
  RunStart later = begin();
  later.step = 1;
  later.heldout_documents = {{"ada", 1}, {"bob", 1}};
  EXPECT_THAT(standing_notices(plain(), later), IsEmpty());
}

TEST(Notices, ALossThatComparesDomainsNeedsTwo) {
  RunConfig config = plain();
  config.balance.method = "expert_divergence";
  const auto said = HasSubstr("it compares domains");
  EXPECT_THAT(standing_notices(config, begin()), IsEmpty());
  parse("micro_batch", config.balance.scope);
  EXPECT_THAT(standing_notices(config, begin()), Contains(said));
  config.data.batcher.composition = Composition::Mixed;
  EXPECT_THAT(standing_notices(config, begin()), Contains(said));  // a micro-batch is one sequence
  config.data.batcher.sequences_per_micro_batch = 2;
  EXPECT_THAT(standing_notices(config, begin()), IsEmpty());
  for (const char* scope : {"sequence", "sequences(1)"}) {
    parse(scope, config.balance.scope);
    EXPECT_THAT(standing_notices(config, begin()), Contains(said)) << scope;
  }
  config.data.batcher.composition = Composition::OneDomain;
  parse("ranks", config.balance.scope);
  EXPECT_THAT(standing_notices(config, begin()), Contains(said));
  RunStart start = begin();
  start.ranks = start.ranks_before = 2;
  EXPECT_THAT(standing_notices(config, start), Not(Contains(said)));
  start.domains = 1;
  EXPECT_THAT(standing_notices(config, start), Contains(said));
}

TEST(Notices, TheTypeThatAutoTookIsTold) {
  RunConfig config;
  RunStart start = begin();
  start.compute = resolve_compute_type(ComputeType::Auto);
  EXPECT_THAT(standing_notices(config, start), Contains(HasSubstr("the faster type of this processor")));
  start.step = 1;
  EXPECT_THAT(standing_notices(config, start), IsEmpty());
  start.compute = ComputeType::Float64;
  EXPECT_THAT(standing_notices(config, start), Contains(HasSubstr("as it began, which is not the faster type here")));
}

}  // namespace
}  // namespace switchyard
