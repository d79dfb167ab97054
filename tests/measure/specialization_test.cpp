#include "switchyard/measure/specialization.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "switchyard/core/error.hpp"
#include "tests/measure/draw.hpp"

namespace switchyard {
namespace {

using Counts = Matrix<int64_t>;

Counts table(const std::vector<std::vector<int64_t>>& rows) { return Counts(rows); }

// H(D) + H(E) - H(D, E) of a joint distribution: another route to I.
double information_by_entropies(const Matrix<double>& joint_NE) {
  const auto term = [](double p) { return p > 0.0 ? -p * std::log(p) : 0.0; };
  double both = 0.0, domains = 0.0, experts = 0.0;
  for (int64_t d = 0; d < joint_NE.rows(); ++d) {
    double sum = 0.0;
    for (int64_t e = 0; e < joint_NE.columns(); ++e) {
      both += term(joint_NE(d, e));
      sum += joint_NE(d, e);
    }
    domains += term(sum);
  }
  for (int64_t e = 0; e < joint_NE.columns(); ++e) {
    double sum = 0.0;
    for (int64_t d = 0; d < joint_NE.rows(); ++d) sum += joint_NE(d, e);
    experts += term(sum);
  }
  return domains + experts - both;
}

Counts any_table(int64_t most) {
  const int64_t rows = draw(1, most);
  const int64_t columns = draw(1, most);
  Counts counts(rows, columns);
  for (int64_t d = 0; d < rows; ++d) {
    for (int64_t& count : counts.row(d)) count = draw(0, 50);
    counts(d, draw(0, columns)) += 1;  // every domain has slots
  }
  return counts;
}

TEST(JointShares, WeighDomainsEqually) {
  const Matrix<double> joint_NE = joint_shares(table({{30, 10}, {1, 3}, {0, 0}}));
  EXPECT_EQ(joint_NE, Matrix<double>({{0.375, 0.125}, {0.125, 0.375}, {0.0, 0.0}}));
  EXPECT_EQ(joint_shares(table({{0, 0}})), Matrix<double>({{0.0, 0.0}}));
  EXPECT_THROW((void)joint_shares(table({{1, -1}})), ShapeError);
  EXPECT_THROW((void)joint_shares(Matrix<double>({{1.0, std::nan("")}})), ShapeError);
}

TEST(MutualInformation, MatchesHandWorkedNumbers) {
  // .75 ln(.375 / .25) + .25 ln(.125 / .25)
  const double expected = 0.75 * std::log(1.5) - 0.25 * std::log(2.0);
  EXPECT_NEAR(mutual_information(joint_shares(table({{3, 1}, {1, 3}}))), expected, 1e-15);
  EXPECT_NEAR(mutual_information(joint_shares(table({{30, 10}, {1, 3}}))), expected, 1e-15);
  EXPECT_NEAR(mutual_information(joint_shares(table({{30, 10}, {0, 0}, {1, 3}}))), expected, 1e-15);
  EXPECT_NEAR(mutual_information(joint_shares(table({{5, 0}, {0, 2}}))), std::numbers::ln2, 1e-15);
  EXPECT_EQ(mutual_information(joint_shares(table({{2, 4}, {1, 2}}))), 0.0);
  EXPECT_EQ(mutual_information(joint_shares(table({{0, 0}, {0, 0}}))), 0.0);
  EXPECT_EQ(mutual_information(joint_shares(table({{4, 1}}))), 0.0);
}

TEST(MutualInformation, EqualsTheEntropiesAndIgnoresNames) {
  EXPECT_TRUE(rc::check([] {
    const Counts counts = any_table(8);
    const double information = mutual_information(joint_shares(counts));
    RC_ASSERT(std::abs(information - information_by_entropies(joint_shares(counts))) < 1e-12);
    const double most = std::log(static_cast<double>(std::min(counts.rows(), counts.columns())));
    RC_ASSERT(information >= 0.0 && information <= most + 1e-12);
    // Domains and experts turned around, one domain ten times as long.
    Counts other(counts.rows(), counts.columns());
    for (int64_t d = 0; d < counts.rows(); ++d) {
      for (int64_t e = 0; e < counts.columns(); ++e) {
        other(counts.rows() - 1 - d, counts.columns() - 1 - e) = counts(d, e) * (d == 0 ? 10 : 1);
      }
    }
    RC_ASSERT(std::abs(mutual_information(joint_shares(other)) - information) < 1e-12);
    RC_ASSERT(std::abs(expert_purity(joint_shares(other)) - expert_purity(joint_shares(counts))) < 1e-12);
  }));
}

// Data processing: looking at pairs of experts only cannot tell more about the domain.
TEST(MutualInformation, FallsWhenExpertsAreMerged) {
  EXPECT_TRUE(rc::check([] {
    const Counts counts = any_table(8);
    RC_PRE(counts.columns() >= 2);
    Counts merged(counts.rows(), counts.columns() - 1);
    for (int64_t d = 0; d < counts.rows(); ++d) {
      for (int64_t e = 0; e < counts.columns(); ++e) merged(d, std::max<int64_t>(e - 1, 0)) += counts(d, e);
    }
    RC_ASSERT(mutual_information(joint_shares(merged)) <= mutual_information(joint_shares(counts)) + 1e-12);
  }));
}

TEST(ExpertPurity, MatchesHandWorkedNumbers) {
  EXPECT_DOUBLE_EQ(expert_purity(joint_shares(table({{3, 1}, {1, 3}}))), 0.75);
  EXPECT_DOUBLE_EQ(expert_purity(joint_shares(table({{2, 2}, {5, 5}, {1, 1}, {9, 9}}))), 0.25);
  EXPECT_DOUBLE_EQ(expert_purity(joint_shares(table({{2, 0, 1}, {0, 7, 0}}))), 1.0);
}

TEST(JensenShannon, MatchesHandWorkedNumbers) {
  const Matrix<double> divergence_NN = jensen_shannon(table({{8, 0}, {0, 3}, {5, 5}, {0, 0}}));
  EXPECT_DOUBLE_EQ(divergence_NN(0, 1), std::numbers::ln2);
  // Middle (.75, .25): its entropy less half of ln 2.
  const double half = -0.75 * std::log(0.75) - 0.25 * std::log(0.25) - 0.5 * std::numbers::ln2;
  EXPECT_NEAR(divergence_NN(0, 2), half, 1e-15);
  EXPECT_EQ(divergence_NN(2, 0), divergence_NN(0, 2));
  EXPECT_EQ(divergence_NN(1, 1), 0.0);
  EXPECT_TRUE(std::isnan(divergence_NN(3, 0)) && std::isnan(divergence_NN(0, 3)) && std::isnan(divergence_NN(3, 3)));
}

TEST(JensenShannon, OfTwoDomainsIsTheirInformation) {
  EXPECT_TRUE(rc::check([] {
    const Counts counts = any_table(7);
    const Matrix<double> divergence_NN = jensen_shannon(counts);
    for (int64_t i = 0; i < counts.rows(); ++i) {
      for (int64_t j = 0; j < counts.rows(); ++j) {
        Counts pair(2, counts.columns());
        std::ranges::copy(counts.row(i), pair.row(0).begin());
        std::ranges::copy(counts.row(j), pair.row(1).begin());
        RC_ASSERT(std::abs(divergence_NN(i, j) - mutual_information(joint_shares(pair))) < 1e-12);
      }
    }
  }));
}

TEST(Attainable, IsTheBoundWhereShapesDivide) {
  EXPECT_TRUE(reference_divides(8, 16, 2));
  EXPECT_TRUE(reference_divides(16, 16, 2));
  EXPECT_TRUE(reference_divides(5, 15, 2));  // three experts for each domain
  EXPECT_FALSE(reference_divides(3, 16, 2));
  EXPECT_FALSE(reference_divides(12, 16, 2));
  EXPECT_FALSE(reference_divides(8, 15, 4));
  EXPECT_FALSE(reference_divides(0, 16, 2));
  EXPECT_DOUBLE_EQ(attainable(8, 16, 2).information, std::log(8.0));
  EXPECT_DOUBLE_EQ(attainable(8, 16, 2).purity, 1.0);
  EXPECT_DOUBLE_EQ(attainable(16, 16, 2).information, std::log(8.0));  // E / K, not ln E
  EXPECT_DOUBLE_EQ(attainable(16, 16, 2).purity, 0.5);
  EXPECT_DOUBLE_EQ(attainable(1, 4, 4).information, 0.0);
}

TEST(Attainable, AsksForTheReferenceElsewhere) {
  EXPECT_THROW((void)attainable(3, 16, 2), UsageError);
  EXPECT_THROW((void)attainable(3, 4, 2, Matrix<double>(2, 4)), ShapeError);
  EXPECT_THROW((void)attainable(3, 4, 5), ShapeError);
  const Matrix<double> shares_NE({{1, 1, 0, 0}, {0, .5, 1, .5}, {1, 0, 0, 1}});
  const Ceiling ceiling = attainable(3, 4, 2, shares_NE);
  EXPECT_NEAR(ceiling.information, information_by_entropies(joint_shares(shares_NE)), 1e-14);
  EXPECT_DOUBLE_EQ(ceiling.purity, 4.0 / 6.0);  // every expert has a domain that gives it 1 of 6 shares
}

TEST(PermuteLabels, KeepsTheLabelsAndTheSeed) {
  std::vector<int64_t> domain_X;
  for (int64_t x = 0; x < 60; ++x) domain_X.push_back(x % 7);
  Rng rng(3, "permutations");
  Rng same(3, "permutations");
  const Counts labels_QX = permute_labels(domain_X, 20, rng);
  EXPECT_EQ(labels_QX, permute_labels(domain_X, 20, same));
  std::vector<int64_t> sorted = domain_X;
  std::ranges::sort(sorted);
  for (int64_t p = 0; p < 20; ++p) {
    std::vector<int64_t> row(labels_QX.row(p).begin(), labels_QX.row(p).end());
    EXPECT_NE(row, domain_X);
    if (p > 0) {
      EXPECT_FALSE(std::ranges::equal(labels_QX.row(p), labels_QX.row(p - 1)));
    }
    std::ranges::sort(row);
    EXPECT_EQ(row, sorted);
  }
  EXPECT_THROW((void)permute_labels(domain_X, 0, rng), UsageError);
}

TEST(PermuteLabels, DrawsEveryOrderEquallyOften) {
  Rng rng(1, "permutations");
  const std::vector<int64_t> domain_X = {0, 1, 2};
  const Counts labels_QX = permute_labels(domain_X, 6000, rng);
  std::vector<int64_t> seen(27);
  for (int64_t p = 0; p < labels_QX.rows(); ++p) {
    ++seen[static_cast<size_t>(labels_QX(p, 0) * 9 + labels_QX(p, 1) * 3 + labels_QX(p, 2))];
  }
  EXPECT_EQ(std::ranges::count_if(seen, [](int64_t n) { return n > 0; }), 6);
  for (const int64_t n : seen) {
    if (n > 0) {
      EXPECT_NEAR(static_cast<double>(n), 1000.0, 5.0 * std::sqrt(1000.0 * 5.0 / 6.0));
    }
  }
}

// Documents of labels (0, 0, 1) have three distinct relabelings, each equally likely; all three are worked out here.
TEST(NullLevel, IsTheMeanOverRelabelings) {
  const Counts counts_XE = table({{4, 0}, {1, 3}, {0, 2}});
  double expected = 0.0, purity = 0.0, squares = 0.0;
  for (const std::vector<int64_t>& labels : {std::vector<int64_t>{0, 0, 1}, {0, 1, 0}, {1, 0, 0}}) {
    const Matrix<double> joint_NE = joint_shares(counts_by_domain(counts_XE, labels, 2));
    expected += information_by_entropies(joint_NE) / 3.0;
    squares += std::pow(information_by_entropies(joint_NE), 2) / 3.0;
    purity += expert_purity(joint_NE) / 3.0;
  }
  Rng rng(5, "permutations");
  const NullLevel level = null_level(counts_XE, permute_labels(std::vector<int64_t>{0, 0, 1}, 20000, rng), 2);
  EXPECT_NEAR(level.information, expected, 5e-3);
  EXPECT_NEAR(level.purity, purity, 5e-3);
  EXPECT_NEAR(level.information_deviation, std::sqrt(squares - expected * expected), 5e-3);
  EXPECT_THROW((void)null_level(counts_XE, table({{0, 0, 2}}), 2), ShapeError);
  EXPECT_THROW((void)null_level(counts_XE, table({{0, 0}}), 2), ShapeError);
}

TEST(SpecializationScore, IsTheShareAboveTheNull) {
  EXPECT_DOUBLE_EQ(specialization_score(0.75, 0.5, 1.0), 0.5);
  EXPECT_DOUBLE_EQ(specialization_score(0.25, 0.5, 1.0), -0.5);
  EXPECT_EQ(specialization_score(1.3, 0.2, 1.3), 1.0);
  EXPECT_EQ(specialization_score(0.0, 0.0, 0.0), 0.0);
}

// ---- whole measurements: documents made by routers of known behaviour ----

struct Corpus {
  Counts slots_XE;
  Counts first_choice_XE;
  std::vector<int64_t> domain_X;
};

// choose(domain, document, rng) gives the distinct experts of a token, the first choice first.
template <typename Choose>
Corpus make_corpus(int64_t domains, int64_t documents_each, int64_t experts, const Choose& choose) {
  Corpus corpus{Counts(domains * documents_each, experts), Counts(domains * documents_each, experts), {}};
  Rng rng(11, "corpus");
  for (int64_t x = 0; x < domains * documents_each; ++x) {
    corpus.domain_X.push_back(x % domains);
    const int64_t tokens = 20 + static_cast<int64_t>(rng.below(200));
    for (int64_t t = 0; t < tokens; ++t) {
      const std::vector<int64_t> chosen = choose(x % domains, x, rng);
      for (const int64_t expert : chosen) ++corpus.slots_XE(x, expert);
      ++corpus.first_choice_XE(x, chosen.front());
    }
  }
  return corpus;
}

Specialization measure(const Corpus& corpus, int64_t domains, int64_t chosen) {
  Rng rng(2, "permutations");
  return slot_specialization(corpus.slots_XE, corpus.domain_X, permute_labels(corpus.domain_X, 200, rng),
                             {domains, chosen, std::nullopt});
}

std::vector<int64_t> random_pair(int64_t begin, int64_t end, Rng& rng) {
  const int64_t first = begin + static_cast<int64_t>(rng.below(static_cast<uint64_t>(end - begin)));
  const int64_t other = begin + static_cast<int64_t>(rng.below(static_cast<uint64_t>(end - begin - 1)));
  return {first, other >= first ? other + 1 : other};
}

TEST(Specialization, OfThePrescribedRoutingIsOne) {
  struct Shape {
    int64_t domains, experts;
  };
  for (const Shape& shape : {Shape{8, 16}, Shape{4, 16}, Shape{16, 16}, Shape{2, 8}, Shape{5, 15}}) {
    const Corpus corpus = make_corpus(shape.domains, 12, shape.experts, [&](int64_t domain, int64_t, Rng& rng) {
      const int64_t owners = std::max<int64_t>(1, shape.domains * 2 / shape.experts);  // domains that share experts
      const int64_t each = shape.experts * owners / shape.domains;
      return random_pair(domain / owners * each, (domain / owners + 1) * each, rng);
    });
    const Specialization result = measure(corpus, shape.domains, 2);
    EXPECT_NEAR(result.score, 1.0, 1e-12) << shape.domains << " domains, " << shape.experts << " experts";
    EXPECT_NEAR(result.information, result.ceiling.information, 1e-12);
    EXPECT_LT(result.null.information, 0.5 * result.ceiling.information);
    EXPECT_NEAR(result.purity, result.ceiling.purity, shape.domains == 16 ? 0.01 : 1e-12);
  }
}

TEST(Specialization, OfFirstChoicesReachesOneWhereDomainsShareNothing) {
  const auto choose = [](int64_t domain, int64_t, Rng& rng) { return random_pair(2 * domain, 2 * domain + 2, rng); };
  const Corpus corpus = make_corpus(8, 12, 16, choose);
  Rng rng(2, "permutations");
  const Counts labels_QX = permute_labels(corpus.domain_X, 200, rng);
  const Specialization first = first_choice_specialization(corpus.first_choice_XE, corpus.domain_X, labels_QX, 8);
  EXPECT_NEAR(first.score, 1.0, 1e-12);
  EXPECT_DOUBLE_EQ(first.ceiling.information, std::log(8.0));
}

TEST(Specialization, OfRandomChoiceIsZeroWithinItsNull) {
  const Corpus corpus = make_corpus(8, 40, 16, [](int64_t, int64_t, Rng& rng) { return random_pair(0, 16, rng); });
  const Specialization result = measure(corpus, 8, 2);
  EXPECT_LT(std::abs(result.information - result.null.information), 4.0 * result.null.information_deviation);
  EXPECT_NEAR(result.score, 0.0, 1e-3);
  EXPECT_GT(result.null.information, 0.0);
}

// Every document sticks to experts of its own, whatever its domain: a null over tokens would call this specialised.
TEST(Specialization, OfRoutingByDocumentIsZero) {
  const auto by_document = [](int64_t, int64_t document, Rng&) {
    Rng own(7, "document", {static_cast<uint64_t>(document)});
    return random_pair(0, 16, own);
  };
  const Specialization result = measure(make_corpus(8, 10, 16, by_document), 8, 2);
  EXPECT_GT(result.information, 0.3);  // uncorrected: a sixth of ln 8
  EXPECT_LT(std::abs(result.information - result.null.information), 4.0 * result.null.information_deviation);
  EXPECT_LT(std::abs(result.score), 0.15);
}

TEST(Specialization, OfFullCollapseIsZero) {
  const Corpus corpus = make_corpus(4, 10, 8, [](int64_t, int64_t, Rng&) { return std::vector<int64_t>{3, 5}; });
  const Specialization result = measure(corpus, 4, 2);
  EXPECT_NEAR(result.score, 0.0, 1e-15);
  EXPECT_DOUBLE_EQ(result.purity, 0.25);
}

TEST(Specialization, IgnoresNamesOfDomainsAndExperts) {
  const auto leaning = [](int64_t domain, int64_t, Rng& rng) {
    return rng.uniform() < 0.4 ? random_pair(2 * domain, 2 * domain + 4, rng) : random_pair(0, 12, rng);
  };
  const Corpus corpus = make_corpus(5, 8, 15, leaning);
  const Specialization result = measure(corpus, 5, 2);
  Corpus renamed = corpus;
  for (int64_t x = 0; x < corpus.slots_XE.rows(); ++x) {
    for (int64_t e = 0; e < 15; ++e) renamed.slots_XE(x, (e * 7 + 2) % 15) = corpus.slots_XE(x, e);
    renamed.domain_X[static_cast<size_t>(x)] = (corpus.domain_X[static_cast<size_t>(x)] * 3 + 1) % 5;
  }
  const Specialization again = measure(renamed, 5, 2);
  EXPECT_NEAR(again.information, result.information, 1e-12);
  EXPECT_NEAR(again.null.information, result.null.information, 1e-12);
  EXPECT_NEAR(again.score, result.score, 1e-12);
  EXPECT_GT(result.score, 0.05);
  EXPECT_LT(result.score, 0.6);
}

TEST(Specialization, IsDefinedAtTheEdges) {
  const std::vector<int64_t> domain_X = {0, 1, 2};
  Rng rng(1, "permutations");
  const Counts labels_QX = permute_labels(domain_X, 50, rng);
  const SpecializationShape shape{3, 1, std::nullopt};
  // One document a domain: a permutation only renames the domains, so everything is null.
  const Counts single_XE = table({{9, 0, 1}, {0, 9, 1}, {1, 1, 9}});
  const Specialization single = slot_specialization(single_XE, domain_X, labels_QX, shape);
  EXPECT_GT(single.information, 0.3);
  EXPECT_NEAR(single.score, 0.0, 1e-12);
  // Perfect and one document a domain: no room between null and ceiling.
  EXPECT_EQ(slot_specialization(table({{9, 0, 0}, {0, 9, 0}, {0, 0, 9}}), domain_X, labels_QX, shape).score, 0.0);
  // Nothing counted at all.
  const Specialization none = slot_specialization(Counts(3, 3), domain_X, labels_QX, shape);
  EXPECT_EQ(none.score, 0.0);
  EXPECT_EQ(none.purity, 0.0);
  // No documents.
  const Specialization empty = slot_specialization(Counts(0, 3), {}, Counts(50, 0), shape);
  EXPECT_EQ(empty.score, 0.0);
  // One domain.
  EXPECT_EQ(slot_specialization(table({{3, 4}, {1, 1}}), std::vector<int64_t>{0, 0}, Counts(5, 2), {1, 1, {}}).score, 0.0);
}

TEST(Specialization, LeavesOutDomainsWithoutSlots) {
  const auto own = [](int64_t domain, int64_t, Rng& rng) { return random_pair(2 * domain, 2 * domain + 2, rng); };
  const Corpus corpus = make_corpus(4, 6, 8, own);
  const Specialization all = measure(corpus, 4, 2);
  // A fifth domain that nothing belongs to changes nothing, although 5 does not divide 8.
  const Specialization with_absent = measure(corpus, 5, 2);
  EXPECT_EQ(with_absent.score, all.score);
  EXPECT_EQ(with_absent.ceiling.information, all.ceiling.information);
  // Neither 3 nor 4 domains divide 10 experts: the ceiling is that of the rows that have slots.
  const std::vector<int64_t> domain_X = {0, 0, 2, 2, 3, 3};
  Rng rng(1, "permutations");
  const Counts labels_QX = permute_labels(domain_X, 20, rng);
  Counts counts_XE(6, 10);
  Matrix<double> reference_NE(4, 10);
  for (int64_t x = 0; x < 6; ++x) counts_XE(x, x) = 5;
  for (int64_t d = 0; d < 4; ++d) reference_NE(d, 2 * d) = reference_NE(d, (2 * d + 3) % 10) = 1.0;
  const Specialization rest = slot_specialization(counts_XE, domain_X, labels_QX, {4, 2, reference_NE});
  Matrix<double> present_NE(3, 10);
  for (int64_t d = 0; d < 3; ++d) std::ranges::copy(reference_NE.row(d == 0 ? 0 : d + 1), present_NE.row(d).begin());
  EXPECT_DOUBLE_EQ(rest.ceiling.information, mutual_information(joint_shares(present_NE)));
  EXPECT_DOUBLE_EQ(rest.ceiling.purity, expert_purity(joint_shares(present_NE)));
}

TEST(Specialization, RefusesMismatchedInput) {
  EXPECT_THROW((void)counts_by_domain(table({{1, 2}}), std::vector<int64_t>{0, 1}, 2), ShapeError);
  EXPECT_THROW((void)counts_by_domain(table({{1, 2}}), std::vector<int64_t>{2}, 2), ShapeError);
  const Matrix<double> reference_NE(2, 3);
  EXPECT_THROW((void)slot_specialization(table({{1, 2, 3}}), std::vector<int64_t>{0}, table({{0}}), {3, 2, reference_NE}),
               ShapeError);
}

}  // namespace
}  // namespace switchyard
