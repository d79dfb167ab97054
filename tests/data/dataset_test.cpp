#include "switchyard/data/dataset.hpp"

#include <gmock/gmock.h>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/data/batch.hpp"
#include "switchyard/data/rows.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class DatasetTest : public ::testing::Test {
 protected:
  DatasetTest() { test::make_dataset(folder(), {{"ada", {{{5, 6}, {7}}, {{8}}}}, {"bob", {{{9, 9, 9}}, {{4}, {5}}}}}, 10); }
  [[nodiscard]] std::filesystem::path folder() const { return scratch_.path() / "data"; }
  void replace_in_manifest(const std::string& from, const std::string& to) const {
    std::string text = read_file(folder() / "manifest.json");
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    test::put_file(folder() / "manifest.json", text);
  }
  [[nodiscard]] std::string open_error() const {
    return error_of<DataError>([this] { Dataset dataset(folder()); });
  }
  test::ScratchFolder scratch_;
};

TEST_F(DatasetTest, NumbersDomainsAndDocuments) {
  const Dataset dataset(folder());
  EXPECT_THAT(dataset.domain_names(), ElementsAre("ada", "bob"));
  EXPECT_EQ(dataset.domain_index("bob"), 1);
  EXPECT_EQ(dataset.first_document(0, Split::Train), 0);
  EXPECT_EQ(dataset.first_document(0, Split::Heldout), 2);
  EXPECT_EQ(dataset.first_document(1, Split::Train), 3);
  EXPECT_EQ(dataset.first_document(1, Split::Heldout), 4);
  EXPECT_EQ(dataset.num_documents(), 6);
  EXPECT_EQ(dataset.shard(1, Split::Train).num_tokens(), 4);
  EXPECT_THAT(dataset.select_domains({}), ElementsAre(0, 1));
  EXPECT_THAT(error_of<UsageError>([&] { (void)dataset.domain_index("bop"); }), HasSubstr("did you mean 'bob'"));
  EXPECT_THROW((void)dataset.shard(2, Split::Train), UsageError);
}

TEST_F(DatasetTest, ManifestReadsBack) {
  Manifest manifest = Dataset(folder()).manifest();
  manifest.domains[0].packages = {{"p", "1:2-3", "p_1%3a2-3_all.deb", "ab", 12}};
  manifest.domains[0].description = "\"quoted\" \u00e9";
  manifest.cap_bytes = 77;
  EXPECT_EQ(manifest_from_json(manifest_to_json(manifest), "m"), manifest);
}

// The library that reads JSON would cut 1.9 to 1, and make -1 of 2^64 - 1.
TEST_F(DatasetTest, NumbersAndNamesOfTheManifestAreChecked) {
  const std::string good = manifest_to_json(Dataset(folder()).manifest());
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    return error_of<DataError>([&] { (void)manifest_from_json(text, "m"); });
  };
  EXPECT_THAT(refused("\"version\": 1", "\"version\": 1.9"), HasSubstr("m: not a data set manifest: 'version' is 1.9, no whole number"));
  EXPECT_THAT(refused("\"cap_bytes\": 0", "\"cap_bytes\": 18446744073709551615"), HasSubstr("'cap_bytes' is 18446744073709551615"));
  EXPECT_THAT(refused("\"tokens\": 5", "\"tokens\": -5"), HasSubstr("'tokens' is -5"));
  EXPECT_THAT(refused("\"tokens\": 5", "\"tokens\": true"), HasSubstr("'tokens' is true"));
  EXPECT_THAT(refused("\"heldout_fraction\": 0", "\"heldout_fraction\": 70"), HasSubstr("which is not in (0, 0.5]"));
  EXPECT_THAT(refused("\"end_of_document\": ", "\"end_of_document\": 1000000"), HasSubstr("does not have"));
  EXPECT_THAT(refused("\"packages\": []", "\"packages\": null"), HasSubstr("'packages' is no list"));
  EXPECT_THAT(refused("\"name\": \"ada\"", "\"name\": \"bob\""), HasSubstr("two domains are named 'bob'"));
  EXPECT_THAT(refused("\"name\": \"ada\"", "\"name\": \"../ada\""), HasSubstr("is no name of a domain"));
  EXPECT_THAT(refused("ada.heldout.tokens", "ada.train.tokens"), HasSubstr("the shard ada.train.tokens is named twice"));
}

TEST_F(DatasetTest, WhatDoesNotFitIsRefused) {
  EXPECT_THAT(error_of<DataError>([this] { Dataset dataset(scratch_.path()); }), HasSubstr("no data set in"));
  replace_in_manifest("\"version\": 1", "\"version\": 2");
  EXPECT_THAT(open_error(), HasSubstr("version 2, this program reads 1"));
  replace_in_manifest("\"version\": 2", "\"version\": \"1\"");
  EXPECT_THAT(open_error(), HasSubstr("manifest.json"));
  replace_in_manifest("\"version\": \"1\"", "\"version\": 1");
  replace_in_manifest("\"tokens\": 5", "\"tokens\": 6");
  EXPECT_THAT(open_error(), HasSubstr("ada.train.tokens holds 2 documents and 5 tokens"));
  replace_in_manifest("\"tokens\": 6", "\"tokens\": 5");
  replace_in_manifest("ada.train.tokens", "../data/ada.train.tokens");
  EXPECT_THAT(open_error(), HasSubstr("not a plain file name"));
  replace_in_manifest("../data/ada.train.tokens", "ada.train.tokens");
  replace_in_manifest("\"heldout\"", "\"held\"");
  EXPECT_THAT(open_error(), AllOf(HasSubstr("not a data set manifest: key 'heldout' not found; build the data set again"),
                                  Not(HasSubstr("json.exception"))));
  test::put_file(folder() / "manifest.json", "{");
  EXPECT_THAT(open_error(), HasSubstr("not a data set manifest"));
}

// A loop of links stands for a missing right, which root has always.
TEST_F(DatasetTest, WhatCannotBeLookedAtIsNotCalledMissing) {
  std::filesystem::create_symlink("loop", scratch_.path() / "loop");
  EXPECT_THAT(error_of<DataError>([this] { Dataset dataset(scratch_.path() / "loop"); }),
              AllOf(HasSubstr("cannot look at " + (scratch_.path() / "loop" / "manifest.json").string()), HasSubstr("symbolic links")));
}

// The command that is told makes what was missed, under the name that was meant, from whatever folder it is called.
TEST_F(DatasetTest, AMissingDataSetIsNamedWithACommandThatMakesIt) {
  const auto missing = [](const std::filesystem::path& path) { return error_of<DataError>([&] { Dataset dataset(path); }); };
  const std::string mix = (scratch_.path() / "mix8").string();
  EXPECT_THAT(missing(mix), AllOf(HasSubstr("no data set in " + mix), HasSubstr("If it lies elsewhere"),
                                  HasSubstr("switchyard data build --preset mix8 --out " + mix), Not(HasSubstr("--from"))));
  EXPECT_THAT(missing(mix + "/"), HasSubstr("--preset mix8 --out " + mix));
  EXPECT_THAT(missing(scratch_.path() / "mine"), AllOf(HasSubstr("--preset mix8 --out " + (scratch_.path() / "mine").string()),
                                                       HasSubstr("--from TEXT in place of --preset mix8")));
  EXPECT_THAT(missing(scratch_.path()), AllOf(HasSubstr("--preset mix8 --out NEW_FOLDER"), HasSubstr("--from TEXT")));
  const std::string here = std::filesystem::current_path().string();
  EXPECT_THAT(missing("data/mix16"), AllOf(HasSubstr("no data set in " + here + "/data/mix16"), HasSubstr("the folder you are in"),
                                           HasSubstr("--set data.path=DIR"), HasSubstr("export: --data DIR"),
                                           HasSubstr("--preset mix16 --out " + here + "/data/mix16")));
}

TEST_F(DatasetTest, MissingAndDamagedShardsAreNamed) {
  std::string bytes = read_file(folder() / "bob.heldout.tokens");
  bytes.back() ^= 1;
  test::put_file(folder() / "bob.heldout.tokens", bytes);
  EXPECT_THAT(open_error(), HasSubstr("bob.heldout.tokens: the tokens are damaged"));
  EXPECT_NO_THROW(Dataset(folder(), ShardCheck::Structure));
  std::filesystem::remove(folder() / "bob.heldout.tokens");
  EXPECT_THAT(open_error(), HasSubstr("bob.heldout.tokens"));
}

TEST_F(DatasetTest, JoinedBatchesKeepSegmentsAndMicroBatches) {
  const Dataset dataset(folder());
  const auto row = [&](int64_t domain, int64_t micro_batch) {
    return batch_of_windows(dataset, Split::Train, {{domain, domain, 0}}, 3, SegmentKind::Document, micro_batch);
  };
  const Batch joined = join_batches({row(0, 0), row(1, 1), row(0, 2)});
  EXPECT_EQ(joined.ids_BS.sizes(), (std::vector<int64_t>{3, 3}));
  EXPECT_THAT(joined.segment_tokens, ElementsAre(3, 3, 3));
  EXPECT_THAT(joined.segment_micro_batch, ElementsAre(0, 1, 2));
  const auto* segments = joined.segment_T.const_data_ptr<int64_t>();
  EXPECT_THAT(std::vector<int64_t>(segments, segments + 9), ElementsAre(0, 0, 0, 1, 1, 1, 2, 2, 2));
  Batch padded = row(0, 0);
  padded.segment_T.mutable_data_ptr<int64_t>()[2] = -1;
  padded.targets_BS.mutable_data_ptr<int64_t>()[2] = kIgnoredTarget;
  padded.segment_tokens = {2};
  const Batch twice = join_batches({row(1, 0), padded});
  EXPECT_EQ(twice.segment_T.const_data_ptr<int64_t>()[5], -1) << "padding stays padding";
  EXPECT_THAT(twice.segment_tokens, ElementsAre(3, 2));
  EXPECT_EQ(twice.num_targets(), 5);
  EXPECT_THROW((void)join_batches({}), ShapeError);
  const Batch short_row = batch_of_windows(dataset, Split::Train, {{0, 0, 0}}, 2, SegmentKind::Row, 0);
  EXPECT_THROW((void)join_batches({row(0, 0), short_row}), ShapeError);
}

}  // namespace
}  // namespace switchyard
