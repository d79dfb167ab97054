#include "switchyard/measure/token_identity.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/measure/specialization.hpp"

namespace switchyard {
namespace {

constexpr int64_t kDomains = 4, kVocabulary = 12, kExperts = 4, kTokens = 64;

at::Tensor ints(std::vector<int64_t> values) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::kLong).clone();
}

struct Tallied {
  TokenIdentityTally tokens{kDomains, kVocabulary, kExperts};
  Matrix<int64_t> counts_NE{kDomains, kExperts};

  [[nodiscard]] double information() const { return mutual_information(joint_shares(counts_NE)); }
  [[nodiscard]] double token_information() const { return mutual_information(token_identity_shares(tokens.halves())); }
};

// 60 documents a domain; draw(domain, rng) gives a token id, choose(domain, id) its expert.
template <typename Draw, typename Choose>
Tallied run(const Draw& draw_id, const Choose& choose) {
  Tallied result;
  Rng rng(6, "text");
  for (int64_t document = 0; document < 60 * kDomains; ++document) {
    const int64_t domain = document % kDomains;
    std::vector<int64_t> ids, experts;
    for (int64_t t = 0; t < kTokens; ++t) {
      ids.push_back(draw_id(domain, rng));
      experts.push_back(choose(domain, ids.back()));
      ++result.counts_NE(domain, experts.back());
    }
    const at::Tensor ids_TK = ints(experts).reshape({-1, 1});
    result.tokens.add(routing_from_top_k(ids_TK, at::full({kTokens, 1}, 1.0, at::kFloat), kExperts), ints(ids),
                      ints(std::vector<int64_t>(kTokens, domain)), ints(std::vector<int64_t>(kTokens, document)));
  }
  return result;
}

int64_t any_id(int64_t, Rng& rng) { return static_cast<int64_t>(rng.below(kVocabulary)); }
// Two of three tokens are of the domain's own three ids.
int64_t leaning_id(int64_t domain, Rng& rng) {
  return rng.below(3) > 0 ? 3 * domain + static_cast<int64_t>(rng.below(3)) : any_id(domain, rng);
}
int64_t by_id(int64_t, int64_t id) { return id / 3; }
int64_t by_domain(int64_t domain, int64_t) { return domain; }

Matrix<double> own_expert() {
  Matrix<double> reference_NE(kDomains, kExperts);
  for (int64_t d = 0; d < kDomains; ++d) reference_NE(d, d) = 1.0;
  return reference_NE;
}

double score(const Tallied& tallied) {
  const double reference = mutual_information(joint_shares(own_expert()));
  const double by_token = mutual_information(token_identity_shares(tallied.tokens.halves(), own_expert()));
  return beyond_token_score(tallied.information(), tallied.token_information(), reference, by_token);
}

TEST(TokenIdentity, ExplainsARouterThatLooksAtTheTokenAlone) {
  const Tallied tallied = run(leaning_id, by_id);
  EXPECT_GT(tallied.information(), 0.3);  // it looks specialised
  EXPECT_NEAR(tallied.token_information(), tallied.information(), 1e-12);
  EXPECT_NEAR(score(tallied), 0.0, 1e-12);
}

TEST(TokenIdentity, ExplainsNothingWhereDomainsShareTheirTokens) {
  const Tallied tallied = run(any_id, by_domain);
  EXPECT_NEAR(tallied.information(), std::log(4.0), 1e-12);
  EXPECT_NEAR(tallied.token_information(), 0.0, 1e-3);
}

// Also where token ids tell much about the domain: raw shares would call part of the reference explained.
TEST(TokenIdentity, LeavesTheReferenceAtOne) {
  const Tallied tallied = run(leaning_id, by_domain);
  // A token is of its own domain's ids with 3/4, else of another's with 1/12 each; drawing the expert from p(e | id) does that
  // twice: 7/12 and 5/36.
  const double entropy = -7.0 / 12.0 * std::log(7.0 / 12.0) - 3.0 * 5.0 / 36.0 * std::log(5.0 / 36.0);
  EXPECT_NEAR(tallied.token_information(), std::log(4.0) - entropy, 0.02);
  EXPECT_NEAR(score(tallied), 1.0, 1e-12);
}

// Half 0 knows ids 0 (expert 0 always) and 2 (expert 1 always), half 1 ids 0 and 1. Worked out by hand.
TEST(TokenIdentity, MatchesHandWorkedShares) {
  std::array<TokenTable, 2> halves;
  halves[0] = {Matrix<int64_t>({{4, 0}, {0, 0}, {0, 4}}), Matrix<int64_t>({{4, 0, 0}, {0, 0, 4}})};
  halves[1] = {Matrix<int64_t>({{1, 3}, {0, 4}, {0, 0}}), Matrix<int64_t>({{2, 0, 0}, {2, 4, 0}})};
  // Domain 0: four tokens of half 0 with p(. | 0) of half 1, (1/4, 3/4); two of half 1 with (1, 0): (3, 3) of 6.
  // Domain 1: four of id 2, unseen in half 1, with its p(e) = (1/8, 7/8); two of id 0 with (1, 0); four of id 1, unseen in
  // half 0, with its p(e) = (1/2, 1/2): (4.5, 5.5) of 10.
  const Matrix<double> joint_NE = token_identity_shares(halves);
  EXPECT_DOUBLE_EQ(joint_NE(0, 0), 0.25);
  EXPECT_DOUBLE_EQ(joint_NE(0, 1), 0.25);
  EXPECT_DOUBLE_EQ(joint_NE(1, 0), 0.225);
  EXPECT_DOUBLE_EQ(joint_NE(1, 1), 0.275);
}

TEST(TokenIdentity, LeavesOutPadding) {
  TokenIdentityTally tally(1, 2, 2);
  const at::Tensor ids_TK = ints({1, -1}).reshape({-1, 1});
  const Routing routing = routing_from_top_k(ids_TK, at::full({2, 1}, 1.0, at::kFloat), 2);
  tally.add(routing, ints({1, 0}), ints({0, -1}), ints({5, -1}));
  int64_t tokens = 0, slots = 0;
  for (const TokenTable& half : tally.halves()) {
    tokens += half.tokens_NV(0, 0) + half.tokens_NV(0, 1);
    slots += half.slots_VE(1, 1);
  }
  EXPECT_EQ(tokens, 1);
  EXPECT_EQ(slots, 1);
}

TEST(TokenIdentity, RefusesBadInput) {
  TokenIdentityTally tally(1, 2, 2);
  const Routing routing = routing_from_top_k(ints({1}).reshape({-1, 1}), at::full({1, 1}, 1.0, at::kFloat), 2);
  EXPECT_THROW(tally.add(routing, ints({2}), ints({0}), ints({5})), ShapeError);
  EXPECT_THROW(tally.add(routing, ints({0}), ints({1}), ints({5})), ShapeError);
  EXPECT_THROW(tally.add(routing, ints({0}), ints({0}), ints({-1})), ShapeError);
  EXPECT_THROW(tally.add(routing, ints({0}), ints({-1}), ints({-1})), ShapeError);
  EXPECT_THROW(tally.add(routing, ints({0, 1}), ints({0}), ints({5})), ShapeError);
  EXPECT_THROW(TokenIdentityTally(0, 2, 2), ShapeError);
  EXPECT_THROW((void)token_identity_shares(tally.halves(), Matrix<double>(2, 2)), ShapeError);
  EXPECT_EQ(beyond_token_score(0.5, 0.1, 0.3, 0.3), 0.0);
}

}  // namespace
}  // namespace switchyard
