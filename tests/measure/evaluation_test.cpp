#include "switchyard/measure/evaluation.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>

#include "switchyard/core/error.hpp"
#include "switchyard/core/min_cost_flow.hpp"
#include "switchyard/measure/agreement.hpp"
#include "switchyard/measure/specialization.hpp"

namespace switchyard {
namespace {

constexpr int64_t kWindow = 32;

struct Setting {
  int64_t layers = 2;
  int64_t domains = 4;
  int64_t experts = 8;
  int64_t chosen = 2;
  int64_t documents = 10;  // of each domain, of one to three windows
};

// Runs every document through `choose(layer, domain, rng)`, one window a batch.
template <typename Choose>
RoutingTally tally_of(const Setting& setting, const Choose& choose) {
  RoutingTally tally({setting.layers, setting.domains, setting.experts, setting.chosen});
  Rng rng(8, "routing");
  const auto options = at::TensorOptions(at::kLong);
  for (int64_t x = 0; x < setting.domains * setting.documents; ++x) {
    for (int64_t window = 0; window <= x % 3; ++window) {
      tally.begin_batch({at::full({kWindow}, x % setting.domains, options), at::full({kWindow}, 1000 - x, options), {}});
      for (int64_t l = 0; l < setting.layers; ++l) {
        std::vector<int64_t> ids;
        for (int64_t t = 0; t < kWindow; ++t) {
          for (const int64_t expert : choose(l, x % setting.domains, rng)) ids.push_back(expert);
        }
        const at::Tensor ids_TK = at::from_blob(ids.data(), {kWindow, setting.chosen}, at::kLong).clone();
        tally.add(l, routing_from_top_k(ids_TK, at::full(ids_TK.sizes(), 0.5, at::kFloat), setting.experts));
      }
    }
  }
  return tally;
}

std::vector<int64_t> random_pair(int64_t end, Rng& rng) {
  const auto first = static_cast<int64_t>(rng.below(static_cast<uint64_t>(end)));
  return {first, (first + 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(end - 1)))) % end};
}

std::vector<DomainLoss> losses_of(int64_t domains) {
  std::vector<DomainLoss> losses;
  for (int64_t d = 0; d < domains; ++d) losses.push_back({"domain" + std::to_string(d), 10.0 * static_cast<double>(d + 1), 10});
  return losses;
}

EvaluationRecord evaluate(const RoutingTally& tally, const EvaluationInput& input = {}) {
  Rng rng(1, "permutations");
  return make_evaluation(tally, losses_of(tally.shape().num_domains), input, rng);
}

TEST(Evaluation, OfThePrescribedRoutingReachesEveryCeiling) {
  const RoutingTally tally = tally_of({}, [](int64_t layer, int64_t domain, Rng& rng) {
    const int64_t pair = (domain + layer) % 4 * 2;
    return rng.below(2) == 0 ? std::vector<int64_t>{pair, pair + 1} : std::vector<int64_t>{pair + 1, pair};
  });
  const EvaluationRecord record = evaluate(tally);
  EXPECT_NEAR(record.specialization, 1.0, 1e-12);
  EXPECT_NEAR(record.purity, 1.0, 1e-12);
  EXPECT_NEAR(record.agreement, 1.0, 1e-12);
  for (const LayerEvaluation& layer : record.layers) {
    EXPECT_NEAR(layer.specialization, 1.0, 1e-12);
    EXPECT_NEAR(layer.specialization_first_choice, 1.0, 1e-12);
    EXPECT_NEAR(layer.jensen_shannon_NN[0][1], std::log(2.0), 1e-12);
    EXPECT_EQ(layer.micro_batch.max_vio, 3.0);  // one domain uses two of eight experts
    EXPECT_EQ(layer.micro_batch.dead_experts, 6.0);
    EXPECT_EQ(layer.global.dead_experts, 0.0);
    EXPECT_LT(layer.global.max_vio, 0.2);  // documents differ in length
  }
}

TEST(Evaluation, OfRandomChoiceIsAtTheNull) {
  const RoutingTally tally = tally_of({.documents = 40}, [](int64_t, int64_t, Rng& rng) { return random_pair(8, rng); });
  const EvaluationRecord record = evaluate(tally);
  EXPECT_NEAR(record.specialization, 0.0, 0.005);
  EXPECT_NEAR(record.purity, record.layers[0].purity_null, 0.01);
  EXPECT_NEAR(record.agreement, record.layers[0].agreement_floor, 0.02);
  EXPECT_LT(record.global.max_vio, 0.1);
  EXPECT_GT(record.micro_batch.max_vio, 2.0 * record.global.max_vio);  // 64 slots on 8 experts are never even
}

// The shares of the reference router where nothing divides, by the definition of testbed_science.md section B.
Matrix<double> reference_shares(int64_t domains, int64_t experts, int64_t chosen) {
  std::vector<int64_t> cost;
  for (int64_t d = 0; d < domains; ++d) {
    for (int64_t e = 0; e < experts; ++e) {
      // Both places in units of 1 / (2 N E), on a circle of 2 N E.
      const int64_t round = 2 * domains * experts;
      const int64_t gap = std::abs((2 * d + 1) * experts - (2 * e + 1) * domains);
      cost.push_back(std::min(gap, round - gap) * std::min(gap, round - gap));
    }
  }
  const std::vector<int64_t> supply(static_cast<size_t>(domains), chosen * experts);
  const std::vector<int64_t> demand(static_cast<size_t>(experts), domains * chosen);
  const std::vector<int64_t> capacity(cost.size(), experts);
  const TransportPlan plan = min_cost_transport(supply, demand, capacity, cost);
  Matrix<double> shares_NE(domains, experts);
  for (int64_t d = 0; d < domains; ++d) {
    for (int64_t e = 0; e < experts; ++e) {
      shares_NE(d, e) = static_cast<double>(plan.flow_RC[static_cast<size_t>(d * experts + e)]) / static_cast<double>(experts);
    }
  }
  return shares_NE;
}

TEST(Evaluation, MeasuresOneForTheReferenceWhereNothingDivides) {
  const Matrix<double> shares_NE = reference_shares(3, 8, 2);
  const double bound = std::log(3.0);
  const Ceiling ceiling = attainable(3, 8, 2, shares_NE);
  EXPECT_GT(ceiling.information, 0.6 * bound);
  EXPECT_LT(ceiling.information, bound - 1e-3);
  // Systematic sampling of two experts by a random start: shares as prescribed.
  const RoutingTally tally = tally_of({.domains = 3, .documents = 60}, [&](int64_t, int64_t domain, Rng& rng) {
    std::vector<int64_t> chosen;
    double next = rng.uniform();
    double sum = 0.0;
    for (int64_t e = 0; e < 8; ++e) {
      sum += shares_NE(domain, e);
      if (sum > next && chosen.size() < 2) {
        chosen.push_back(e);
        next += 1.0;
      }
    }
    return chosen;
  });
  EvaluationInput input;
  input.reference_NE = shares_NE;
  EXPECT_NEAR(evaluate(tally, input).specialization, 1.0, 0.03);
  EXPECT_THROW((void)evaluate(tally), UsageError);  // no reference, no ceiling
}

TEST(Evaluation, CarriesWhatTheFunctionsMeasure) {
  const RoutingTally tally = tally_of({}, [](int64_t, int64_t domain, Rng& rng) {
    return rng.uniform() < 0.5 ? std::vector<int64_t>{2 * domain, 2 * domain + 1} : random_pair(8, rng);
  });
  EvaluationInput input;
  input.step = 300;
  input.sequences = 77;
  input.permutations = 50;
  const EvaluationRecord record = evaluate(tally, input);
  EXPECT_EQ(record.step, 300);
  EXPECT_EQ(record.sequences, 77);
  EXPECT_EQ(record.permutations, 50);
  ASSERT_EQ(record.layers.size(), 2u);
  Rng rng(1, "permutations");
  const Matrix<int64_t> labels_QX = permute_labels(tally.domain_X(), 50, rng);
  double score = 0.0, max_vio = 0.0;
  for (size_t l = 0; l < 2; ++l) {
    const LayerEvaluation& layer = record.layers[l];
    const LayerTally& counts = tally.layers()[l];
    const Matrix<int64_t> counts_NE = counts_by_domain(counts.slots_XE, tally.domain_X(), 4);
    const Specialization slots = slot_specialization(counts.slots_XE, tally.domain_X(), labels_QX, {4, 2, {}});
    EXPECT_EQ(layer.layer, static_cast<int64_t>(l));
    EXPECT_EQ(layer.counts_NE, counts_NE.nested());
    EXPECT_EQ(layer.specialization, slots.score);
    EXPECT_EQ(layer.specialization, (layer.information - layer.information_null) /
                                        (layer.information_ceiling - layer.information_null));
    EXPECT_EQ(layer.information_null, slots.null.information);
    EXPECT_EQ(layer.purity, slots.purity);
    EXPECT_EQ(layer.purity_null, slots.null.purity);
    EXPECT_EQ(layer.agreement, best_agreement(joint_shares(counts_NE), 2).value);
    EXPECT_EQ(layer.micro_batch, mean_load(counts.micro_batches));
    score += layer.specialization / 2.0;
    max_vio += layer.global.max_vio / 2.0;
  }
  EXPECT_DOUBLE_EQ(record.specialization, score);
  EXPECT_DOUBLE_EQ(record.global.max_vio, max_vio);
  EXPECT_GT(record.specialization, 0.1);
  EXPECT_LT(record.specialization, 0.7);
}

TEST(Evaluation, WeighsLossesByTokens) {
  RoutingTally tally({1, 3, 2, 1});
  Rng rng(1, "permutations");
  const std::vector<DomainLoss> losses = {{"a", 20.0, 10}, {"b", 30.0, 30}, {"c", 0.0, 0}};
  const EvaluationRecord record = make_evaluation(tally, losses, {.reference_NE = Matrix<double>(3, 2)}, rng);
  EXPECT_EQ(record.tokens, 40);
  EXPECT_DOUBLE_EQ(record.loss, 1.25);
  EXPECT_DOUBLE_EQ(record.perplexity, std::exp(1.25));
  EXPECT_DOUBLE_EQ(record.domains[0].loss, 2.0);
  EXPECT_DOUBLE_EQ(record.domains[1].perplexity, std::exp(1.0));
  EXPECT_TRUE(std::isnan(record.domains[2].loss));
  EXPECT_EQ(record.domains[2].tokens, 0);
}

TEST(Evaluation, WithoutBatchesHasDefinedNumbers) {
  RoutingTally tally({2, 2, 4, 2});
  const EvaluationRecord record = evaluate(tally);
  EXPECT_EQ(record.specialization, 0.0);
  EXPECT_EQ(record.global.utilization, 0.0);
  EXPECT_EQ(record.global.dead_experts, 4.0);
  EXPECT_EQ(record.layers.size(), 2u);
}

TEST(Evaluation, GivesTheSameBitsForTheSameSeed) {
  const auto choose = [](int64_t, int64_t, Rng& rng) { return random_pair(8, rng); };
  EXPECT_EQ(to_json_line(evaluate(tally_of({}, choose))), to_json_line(evaluate(tally_of({}, choose))));
}

TEST(Evaluation, RefusesMismatchedInput) {
  RoutingTally tally({1, 3, 2, 1});
  Rng rng(1, "permutations");
  EXPECT_THROW((void)make_evaluation(tally, losses_of(2), {}, rng), ShapeError);
  EXPECT_THROW((void)make_evaluation(tally, losses_of(3), {.permutations = 0}, rng), UsageError);
  EXPECT_THROW((void)matrix_from_tensor(at::full({3}, 1.0)), ShapeError);
  EXPECT_EQ(matrix_from_tensor(at::full({1, 2}, 0.5)), Matrix<double>({{0.5, 0.5}}));
}

}  // namespace
}  // namespace switchyard
