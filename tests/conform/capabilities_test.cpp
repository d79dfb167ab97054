// Only what capabilities() names is asked for, and what it says is what is judged by: features, weightings, tolerance.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <tuple>

#include "declared.hpp"
#include "mutants.hpp"
#include "switchyard/conform/own.hpp"
#include "switchyard/conform/suite.hpp"
#include "switchyard/conform/textbook.hpp"
#include "switchyard/core/error.hpp"

namespace switchyard::conform {
namespace {

std::set<Feature> every_feature() { return Textbook().capabilities().features; }

std::vector<std::string> failures_of(const Implementation& implementation) {
  std::vector<std::string> failures;
  for (const Result& result : run_suite(implementation)) {
    if (result.finding.verdict != Verdict::Fails) continue;
    failures.push_back(
        join_text(result.check->id, " ", result.check->name, " on ", to_string(result.subject), ": ", result.finding.message));
  }
  return failures;
}

bool has_empty_forward(const BalanceCase& step) {
  for (int64_t m = 0; m < step.num_micro_batches; ++m) {
    for (int64_t rank = 0; rank < step.num_ranks; ++rank) {
      if (valid_tokens(step, m, rank) == 0) return true;
    }
  }
  return false;
}

// Whether tokens of a segment lie at more than one of these places, or a place holds several segments.
template <typename Place, typename Key, typename Value>
bool is_shared(const BalanceCase& step, const Key& key_of, const Value& value_of) {
  std::map<Place, int64_t> first_of;
  return std::any_of(step.tokens.begin(), step.tokens.end(), [&](const CaseToken& token) {
    return token.valid() && first_of.emplace(key_of(token), value_of(token)).first->second != value_of(token);
  });
}

bool is_split(const BalanceCase& step) {
  return is_shared<int64_t>(
      step, [](const CaseToken& token) { return token.segment; }, [](const CaseToken& token) { return token.rank; });
}

bool is_packed(const BalanceCase& step) {
  return is_shared<std::tuple<int64_t, int64_t, int64_t>>(
      step, [](const CaseToken& token) { return std::tuple(token.micro_batch, token.rank, token.row); },
      [](const CaseToken& token) { return token.segment; });
}

bool asks_for(Feature feature, const BalanceCase& step, const StateBytes& saved) {
  switch (feature) {
    case Feature::MicroBatches:
      return step.num_micro_batches > 1;
    case Feature::Ranks:
      return step.num_ranks > 1;
    case Feature::SplitSegments:
      return is_split(step);
    case Feature::Devices:
      return num_devices(step.grid) > 1;
    case Feature::Padding:
      return step.num_valid() < step.num_tokens() || has_empty_forward(step);
    case Feature::Packing:
      return is_packed(step);
    case Feature::GivenChoices:
      return !step.choices_LTK.empty();
    case Feature::Capacity:
      return !step.dropped_LTK.empty();
    case Feature::Recompute:
      return !step.runs_L.empty();
    case Feature::TaskLoss:
      return !step.task_LTE.empty() || step.subject.method == "none";
    case Feature::Evaluation:
      return step.evaluation != Evaluation::None;
    case Feature::BadWiring:
      return step.wiring != Wiring::Whole;
    case Feature::SavedState:
      return !saved.empty();
    case Feature::SavedProgress:
      return step.interruption != Interruption::None;
    case Feature::CountAccumulation:
      return false;  // accumulate()
  }
  throw UsageError("no such feature");
}

// The textbook without some features; what is asked for all the same is an error.
class Lacking : public Textbook {
 public:
  explicit Lacking(std::set<Feature> features) : lacking_(std::move(features)) {}

  [[nodiscard]] Capabilities capabilities() const override {
    Capabilities some = Textbook::capabilities();
    for (const Feature feature : lacking_) some.features.erase(feature);
    return some;
  }
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    for (const Feature feature : lacking_) {
      for (const BalanceCase& step : steps) {
        SWITCHYARD_CHECK(!asks_for(feature, step, saved), StateError, "asked for ", to_string(feature));
      }
    }
    std::vector<Outcome> outcomes = Textbook::run_steps(steps, saved);
    for (Outcome& outcome : outcomes) {
      if (lacking_.contains(Feature::SavedState)) outcome.state.clear();
    }
    return outcomes;
  }
  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    SWITCHYARD_CHECK(!lacking_.contains(Feature::CountAccumulation), StateError, "asked for numbers");
    return Textbook::accumulate(parts_ME);
  }

 private:
  std::set<Feature> lacking_;
};

class EachFeature : public testing::TestWithParam<Feature> {};

TEST_P(EachFeature, IsNotAskedForWhereItIsNotThere) { EXPECT_THAT(failures_of(Lacking({GetParam()})), testing::IsEmpty()); }

std::string feature_name(const testing::TestParamInfo<Feature>& feature) {
  std::string name = to_string(feature.param);
  std::replace_if(
      name.begin(), name.end(), [](char letter) { return letter == ' ' || letter == '-'; }, '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Capabilities, EachFeature, testing::ValuesIn(every_feature()), feature_name);

class Recorder : public Textbook {
 public:
  [[nodiscard]] std::vector<Outcome> run_steps(std::span<const BalanceCase> steps, const StateBytes& saved) const override {
    for (const Feature feature : every_feature()) {
      for (const BalanceCase& step : steps) {
        if (asks_for(feature, step, saved)) asked.insert(feature);
      }
    }
    return Textbook::run_steps(steps, saved);
  }
  [[nodiscard]] std::vector<int64_t> accumulate(const std::vector<std::vector<int64_t>>& parts_ME) const override {
    asked.insert(Feature::CountAccumulation);
    return Textbook::accumulate(parts_ME);
  }
  mutable std::set<Feature> asked;
};

// Else the test above would say nothing.
TEST(Capabilities, EachFeatureIsAskedForWhereItIs) {
  const Recorder recorder;
  EXPECT_THAT(failures_of(recorder), testing::IsEmpty());
  EXPECT_EQ(recorder.asked, every_feature());
}

TEST(Capabilities, NoFeatureAtAllIsEnough) { EXPECT_THAT(failures_of(Lacking(every_feature())), testing::IsEmpty()); }

// Weighs and reduces in one way whatever it is told, as most frameworks do.
template <GroupWeighting Weighting, LayerReduction Layers>
class OneWay : public Textbook {
 public:
  [[nodiscard]] Capabilities capabilities() const override {
    Capabilities some = Textbook::capabilities();
    some.weightings = {Weighting};
    some.layer_reductions = {Layers};
    return some;
  }
  [[nodiscard]] Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    BalanceCase own = step;
    own.weighting = Weighting;
    own.layers = Layers;
    return Textbook::run_step(own, memory);
  }
};
using OnlyMean = OneWay<GroupWeighting::Mean, LayerReduction::Mean>;
using OnlyMeanAndSum = OneWay<GroupWeighting::Mean, LayerReduction::Sum>;
using OnlyTokens = OneWay<GroupWeighting::Tokens, LayerReduction::Sum>;

TEST(Capabilities, OneWeightingAndOneReductionAreEnough) {
  EXPECT_THAT(failures_of(OnlyMean()), testing::IsEmpty());
  EXPECT_THAT(failures_of(OnlyMeanAndSum()), testing::IsEmpty());
  EXPECT_THAT(failures_of(OnlyTokens()), testing::IsEmpty());
}

TEST(Capabilities, AWeightingThatIsNotKeptIsAFault) {
  const Declared wrong(std::make_unique<OnlyMean>(), Textbook().capabilities());
  EXPECT_THAT(failures_of(wrong), testing::Contains(testing::HasSubstr("B1 dense-oracle on lbl/micro_batch")));
}

TEST(Capabilities, WeHoldWhateverComesFirst) {
  Capabilities other = own_implementation()->capabilities();
  other.contracts = {{Averaging::ByTokens, Averaging::Sum}};
  other.weightings = {GroupWeighting::Mean};
  other.layer_reductions = {LayerReduction::Sum};
  EXPECT_THAT(failures_of(Declared(own_implementation(), other)), testing::IsEmpty());
}

double rounded(double value) { return static_cast<double>(static_cast<float>(value)); }
void round_all(std::vector<double>& values) { std::transform(values.begin(), values.end(), values.begin(), rounded); }

// Right, in fp32: what goes in, what comes out and what lies between.
class Fp32 : public Textbook {
 protected:
  [[nodiscard]] std::vector<double> probabilities_E(std::span<const double> logits_E) const override {
    std::vector<float> scores_E(logits_E.begin(), logits_E.end());
    const float largest = *std::max_element(scores_E.begin(), scores_E.end());
    float sum = 0.0F;
    for (float& score : scores_E) sum += score = std::exp(score - largest);
    for (float& score : scores_E) score /= sum;
    return {scores_E.begin(), scores_E.end()};
  }
  [[nodiscard]] std::vector<double> fractions_E(const View& view) const override {
    std::vector<double> fractions = Textbook::fractions_E(view);
    round_all(fractions);
    return fractions;
  }
  [[nodiscard]] double contract_factor(const BalanceCase& step, int64_t micro_batch, int64_t rank) const override {
    return rounded(Textbook::contract_factor(step, micro_batch, rank));
  }
  void remember(const BalanceCase& step, Memory& memory) const override {
    Textbook::remember(step, memory);
    round_all(memory.fractions_LE);
  }
  [[nodiscard]] Outcome run_step(const BalanceCase& step, Memory& memory) const override {
    BalanceCase single = step;
    round_all(single.logits_LTE);
    round_all(single.task_LTE);
    Outcome outcome = Textbook::run_step(single, memory);
    round_all(outcome.value_L);
    round_all(outcome.gradient_LTE);
    outcome.weighted_loss = rounded(outcome.weighted_loss);
    outcome.task_loss = rounded(outcome.task_loss);
    return outcome;
  }
};

std::vector<std::string> failures_at(std::unique_ptr<Implementation> implementation, double tolerance) {
  Capabilities capabilities = implementation->capabilities();
  capabilities.tolerance = tolerance;
  return failures_of(Declared(std::move(implementation), capabilities));
}

TEST(Tolerance, WhatIsRightInFp32HoldsAtThatOfFp32) {
  EXPECT_THAT(failures_at(std::make_unique<Fp32>(), kFp32Tolerance), testing::IsEmpty());
  EXPECT_THAT(failures_at(std::make_unique<Fp32>(), 0.1 * kFp32Tolerance), testing::IsEmpty());  // room
  EXPECT_THAT(failures_at(std::make_unique<Fp32>(), kWidestTolerance), testing::IsEmpty());
  EXPECT_THAT(failures_at(std::make_unique<Fp32>(), kDoubleTolerance), testing::Not(testing::IsEmpty()));
}

// The bugs in this list are many times larger than the widest tolerance.
TEST(Tolerance, EveryMutantIsCaughtAtTheWidest) {
  for (const Mutant& mutant : mutants()) {
    Capabilities capabilities = mutant.make()->capabilities();
    const auto check = std::find_if(check_table().begin(), check_table().end(),
                                    [&mutant](const Check& one) { return one.id == mutant.id && one.name == mutant.check; });
    for (const double tolerance : {kFp32Tolerance, kWidestTolerance}) {
      capabilities.tolerance = tolerance;
      const Result result = run_check(Declared(mutant.make(), capabilities), *check, mutant.subject);
      EXPECT_EQ(result.finding.verdict, Verdict::Fails) << mutant.bug << " at " << tolerance;
    }
  }
}

TEST(Capabilities, WhatCannotBeTriedIsWrongUse) {
  const auto refused = [](const std::function<void(Capabilities&)>& change) {
    Capabilities capabilities = Textbook().capabilities();
    change(capabilities);
    EXPECT_THROW(static_cast<void>(run_suite(Declared(std::make_unique<Textbook>(), capabilities))), UsageError);
  };
  for (const double tolerance : {0.0, 1e-13, 1e-2, -1e-9, std::numeric_limits<double>::quiet_NaN()}) {
    refused([tolerance](Capabilities& all) { all.tolerance = tolerance; });
  }
  refused([](Capabilities& all) { all.subjects.clear(); });
  refused([](Capabilities& all) { all.contracts.clear(); });
  refused([](Capabilities& all) { all.weightings.clear(); });
  refused([](Capabilities& all) { all.layer_reductions.clear(); });
}

}  // namespace
}  // namespace switchyard::conform
