#include "switchyard/testbed/data_check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "switchyard/core/error.hpp"
#include "tests/scratch_folder.hpp"
#include "tests/testbed/small_data.hpp"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

std::vector<PlannedRun> two_runs(const std::filesystem::path& data) {
  PlannedRun run;
  test::use_small_data(run.config, data);
  run.name = "one";
  PlannedRun other = run;
  other.name = "two";
  return {run, other};
}

TEST(CheckData, AsksWhatEachRunWouldAsk) {
  const test::ScratchFolder scratch;
  test::write_small_data(scratch.path() / "data", 12);
  const auto refuses = [&](const std::vector<PlannedRun>& runs) { return [&] { check_needs(scratch.path(), runs); }; };
  std::vector<PlannedRun> runs = two_runs(scratch.path() / "data");
  EXPECT_NO_THROW(check_needs(scratch.path(), runs));
  runs[1].config.model.vocab_size = 17;
  EXPECT_THAT(refuses(runs), ThrowsMessage<UsageError>(HasSubstr("run two: model.vocab_size is 17; the data set")));
  runs = two_runs(scratch.path() / "data");
  runs[1].config.data.batcher.domains = {"bop"};
  EXPECT_THAT(refuses(runs), ThrowsMessage<UsageError>(AllOf(HasSubstr("run two: data.domains: "), HasSubstr("did you mean 'bob'"))));
  runs = two_runs(scratch.path() / "data");
  runs[1].config.model.head_width = int64_t{1} << 50;
  EXPECT_THAT(refuses(runs), ThrowsMessage<UsageError>(AllOf(HasSubstr("run two: "), HasSubstr("million weights"), HasSubstr("head_width"))));
  runs = two_runs(scratch.path() / "data");
  runs[1].config.evaluation.sequences_per_domain = 24;
  EXPECT_THAT(refuses(runs), ThrowsMessage<DataError>(AllOf(HasSubstr("run two: "), HasSubstr("has 240 held-out tokens"))));
  runs = two_runs(scratch.path() / "data");
  runs[1].config.data.path = (scratch.path() / "none").string();
  EXPECT_THAT(refuses(runs), ThrowsMessage<DataError>(HasSubstr("no data set in " + runs[1].config.data.path)));
}

TEST(DocumentNotes, SayOnceWhatFewHeldOutDocumentsDo) {
  const test::ScratchFolder scratch;
  const auto notes = [&](int64_t documents) {
    const std::filesystem::path data = scratch.path() / std::to_string(documents);
    test::write_small_data(data, documents);
    return document_notes(two_runs(data));
  };
  EXPECT_THAT(notes(1), ElementsAre(HasSubstr("Held-out text: each domain is evaluated on 1 held-out document: S is 0")));
  EXPECT_THAT(notes(6), ElementsAre(HasSubstr("domain 'ada' is evaluated on 6 held-out documents")));
  EXPECT_THAT(notes(20), IsEmpty());
  std::vector<PlannedRun> runs = two_runs(scratch.path() / "6");
  runs[0].arm = "few";
  runs[1].arm = "many";
  runs[1].config.data.path = (scratch.path() / "20").string();
  EXPECT_THAT(document_notes(runs), ElementsAre(HasSubstr("Held-out text of arm few: domain 'ada' is evaluated on 6 ")));
  EXPECT_THAT(document_notes(two_runs(scratch.path() / "none")), IsEmpty());
}

}  // namespace
}  // namespace switchyard
