#include "switchyard/core/scope.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

Scope parsed(std::string_view text) {
  Scope scope;
  parse(text, scope);
  return scope;
}

TEST(Scope, RoundTripsEveryKind) {
  for (const ScopeInfo& info : scope_table()) {
    Scope scope{.kind = info.kind};
    if (info.kind == ScopeKind::Sequences) scope.num_sequences = 8;
    if (info.kind == ScopeKind::Ema) scope.decay = 0.1 + 0.2;
    EXPECT_EQ(parsed(to_string(scope)), scope) << info.spelling;
  }
}

TEST(Scope, TableFollowsTheEnum) {
  for (size_t i = 0; i < scope_table().size(); ++i) {
    EXPECT_EQ(static_cast<size_t>(scope_table()[i].kind), i);
    EXPECT_FALSE(scope_table()[i].description.empty());
  }
  EXPECT_EQ(scope_table().back().kind, ScopeKind::Ema);
}

TEST(Scope, SpellsItsParameter) {
  EXPECT_EQ(to_string(Scope{.kind = ScopeKind::Sequences, .num_sequences = 8}), "sequences(8)");
  EXPECT_EQ(to_string(Scope{.kind = ScopeKind::Ema, .decay = 0.9}), "ema(0.9)");
  EXPECT_EQ(to_string(Scope{.kind = ScopeKind::MicroBatch}), "micro_batch");
}

TEST(Scope, NamesTheNearestAndAllValidOnes) {
  EXPECT_THAT([] { parsed("micro-batch"); },
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("'micro-batch' (did you mean 'micro_batch'?)"),
                                               HasSubstr("sequence, sequences(n), micro_batch, ranks, prefix, "
                                                         "optimizer_batch, previous_step, ema(decay)"))));
  EXPECT_THAT([] { parsed("sequencs(8)"); }, ThrowsMessage<ConfigError>(HasSubstr("unknown scope 'sequencs(8)' (did")));
  EXPECT_THROW(parsed(""), ConfigError);
}

TEST(Scope, RefusesBadParameters) {
  for (const char* text : {"sequences", "sequences()", "sequences(0)", "sequences(-1)", "sequences(2.5)", "sequences(8",
                           "sequences(8)x", "sequences(99999999999999999999)", "sequences( 8)"}) {
    EXPECT_THROW(parsed(text), ConfigError) << text;
  }
  for (const char* text : {"ema", "ema()", "ema(0)", "ema(1)", "ema(1.5)", "ema(nan)", "ema(x)", "ema(0.9) "}) {
    EXPECT_THROW(parsed(text), ConfigError) << text;
  }
  EXPECT_THAT([] { parsed("ranks(2)"); }, ThrowsMessage<ConfigError>(HasSubstr("takes no parameter")));
}

TEST(Scope, IsUntouchedByAFailedParse) {
  Scope scope{.kind = ScopeKind::Prefix};
  EXPECT_THROW(parse("ema(2)", scope), ConfigError);
  EXPECT_EQ(scope, Scope{.kind = ScopeKind::Prefix});
}

}  // namespace
}  // namespace switchyard
