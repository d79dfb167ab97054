#include "switchyard/data/few_documents.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(FewDocuments, AreToldWhereOneOfTheDomainsHasFewerThanAdvised) {
  const auto text = [](const std::vector<DomainDocuments>& domains) { return few_documents_text(domains, DocumentsOf::Dataset); };
  EXPECT_EQ(text({}), "");
  EXPECT_EQ(text({{"ada", 20}, {"bob", 10}}), "");
  EXPECT_THAT(text({{"ada", 20}, {"bob", 7}}), AllOf(StartsWith("domain 'bob' has 7 held-out documents; 10 or more"),
                                                     HasSubstr("by about 10 % of itself, and by up to twice that")));
  EXPECT_THAT(text({{"ada", 1}, {"bob", 2}}), AllOf(StartsWith("domain 'ada' has 1 held-out document; "), HasSubstr("about 75 %")));
  EXPECT_THAT(text({{"ada", 1}, {"bob", 1}}), StartsWith("each domain has 1 held-out document: S is 0 whatever the router does"));
  EXPECT_THAT(text({{"ada", 400}}), AllOf(StartsWith("'ada' is the only domain"), HasSubstr("S is 0 whatever the router does")));
  EXPECT_THAT(few_documents_text({{"ada", 20}, {"bob", 7}}, DocumentsOf::Evaluation), StartsWith("domain 'bob' is evaluated on 7 "));
}

TEST(FewDocuments, TakeTheMeanShareOfOneDocumentFromS) {
  EXPECT_EQ(specialization_shortfall({}), 0.0);
  EXPECT_EQ(specialization_shortfall({{"ada", 1}, {"bob", 1}}), 1.0);
  EXPECT_EQ(specialization_shortfall({{"ada", 4}, {"bob", 2}}), 0.375);
}

}  // namespace
}  // namespace switchyard
