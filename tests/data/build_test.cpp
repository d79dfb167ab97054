#include "switchyard/data/build.hpp"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>

#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/rng.hpp"
#include "switchyard/data/batcher.hpp"
#include "switchyard/data/dataset.hpp"
#include "switchyard/data/unicode.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Words that differ from stream to stream.
std::string words(std::string_view stream, uint64_t number, int count) {
  Rng rng(5, stream, {number});
  std::string text;
  for (int i = 0; i < count; ++i) {
    for (uint64_t letters = rng.below(5) + 2; letters > 0; --letters)
      text += static_cast<char>('a' + rng.below(stream.size() + 3));
    text += rng.below(9) == 0 ? '\n' : ' ';
  }
  return text;
}

class Recorder : public Progress {
 public:
  void report(std::string_view phase, int64_t done, int64_t total) override {
    if (phases.empty() || phases.back() != phase) phases.emplace_back(phase);
    if (done == 0) at_zero.emplace(phase);
    if (done == total) finished.emplace(phase);
  }
  std::vector<std::string> phases;
  std::set<std::string, std::less<>> at_zero, finished;
};

class NoProgress : public Progress {
 public:
  void report(std::string_view, int64_t, int64_t) override {}
};

class BuildTest : public ::testing::Test {
 protected:
  BuildTest() {
    for (const std::string domain : {"one", "three"}) {
      for (uint64_t i = 0; i < 40; ++i)
        test::put_file(from() / domain / (std::to_string(i % 7) + "/" + std::to_string(i) + ".txt"), words(domain, i, 150));
    }
    options_.from = from();
    options_.out = scratch_.path() / "set";
    options_.tokenizer.vocab_size = 330;
  }
  [[nodiscard]] fs::path from() const { return scratch_.path() / "from"; }
  [[nodiscard]] fs::path out() const { return options_.out; }
  void build() { build_dataset(options_, progress_); }

  // Nothing under the final name, and nothing beside it but the input.
  void expect_nothing_left() const {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(scratch_.path()))
      names.push_back(entry.path().filename().string());
    EXPECT_THAT(names, ElementsAre("from"));
  }

  test::ScratchFolder scratch_;
  BuildOptions options_;
  NoProgress progress_;
};

std::vector<std::string> documents_of(const Dataset& dataset, const Tokenizer& tokenizer, int64_t domain, Split split) {
  const TokenShard& shard = dataset.shard(domain, split);
  std::vector<std::string> documents;
  for (int64_t d = 0; d < shard.num_documents(); ++d) {
    std::vector<int32_t> ids(static_cast<size_t>(shard.document_start(d + 1) - shard.document_start(d)));
    shard.copy_tokens(shard.document_start(d), std::span<int32_t>(ids));
    EXPECT_EQ(ids.back(), kEndPiece);
    ids.pop_back();
    documents.push_back(tokenizer.decode(ids));
  }
  return documents;
}

TEST_F(BuildTest, EveryDocumentIsThereOnceInOneSplit) {
  build();
  const Dataset dataset(out());
  const Tokenizer tokenizer(dataset.tokenizer_path());
  EXPECT_THAT(dataset.domain_names(), ElementsAre("one", "three"));
  EXPECT_EQ(dataset.num_documents(), 80);
  for (int64_t domain = 0; domain < 2; ++domain) {
    const DomainRecord& record = dataset.manifest().domains[static_cast<size_t>(domain)];
    std::multiset<std::string> expected, got;
    for (uint64_t i = 0; i < 40; ++i) {
      const std::string text = words(record.name, i, 150);
      expected.insert(text.substr(0, text.find_last_not_of('\n') + 1));
    }
    const std::vector<std::string> train = documents_of(dataset, tokenizer, domain, Split::Train);
    const std::vector<std::string> held = documents_of(dataset, tokenizer, domain, Split::Heldout);
    got.insert(train.begin(), train.end());
    got.insert(held.begin(), held.end());
    EXPECT_EQ(got, expected);
    EXPECT_GT(held.size(), 4U);  // a fifth of so small a domain
    EXPECT_LT(held.size(), 16U);
    EXPECT_EQ(record.text_sha256.size(), 64U);
    EXPECT_EQ(record.train.sha256, sha256_file(out() / record.train.file));
  }
  EXPECT_EQ(dataset.manifest().tokenizer_sha256, sha256_file(dataset.tokenizer_path()));
  EXPECT_EQ(dataset.hash(), sha256_file(out() / "manifest.json"));
  EXPECT_NO_THROW((void)heldout_batches(dataset, {}, 16, 8, 4));
}

TEST_F(BuildTest, TokenizerDoesNotSeeHeldoutText) {
  std::string rare;
  for (int i = 0; i < 100; ++i) rare += "qqqq ";
  test::put_file(from() / "rare" / "long.txt", words("one", 99, 1000));  // more than half: for training
  test::put_file(from() / "rare" / "short.txt", rare);
  build();
  const Dataset dataset(out());
  const Tokenizer tokenizer(dataset.tokenizer_path());
  EXPECT_THAT(documents_of(dataset, tokenizer, 1, Split::Heldout), ElementsAre(HasSubstr("qqqq")));
  for (int64_t id = 0; id < tokenizer.vocab_size(); ++id) EXPECT_THAT(tokenizer.piece(id), ::testing::Not(HasSubstr("q")));
}

TEST_F(BuildTest, SameFilesSameBytes) {
  build();
  const fs::path first = out();
  options_.out = scratch_.path() / "again";
  options_.num_threads = 1;
  build();
  std::set<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(first)) {
    names.insert(entry.path().filename().string());
    EXPECT_EQ(read_file(entry.path()), read_file(out() / entry.path().filename())) << entry.path();
  }
  EXPECT_THAT(names, ElementsAre("manifest.json", "one.heldout.tokens", "one.train.tokens", "three.heldout.tokens",
                                 "three.train.tokens", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"));
}

TEST_F(BuildTest, ReportsItsPhases) {
  Recorder recorder;
  build_dataset(options_, recorder);
  EXPECT_THAT(recorder.phases, ElementsAre("extract", "tokenizer", "encode"));
  EXPECT_EQ(recorder.at_zero, recorder.finished);
  EXPECT_EQ(recorder.finished.size(), 3U);
}

TEST_F(BuildTest, BadUtf8NamesFileAndByte) {
  test::put_file(from() / "one" / "bad.txt", "good \xE9 bad");
  const std::string message = error_of<DataError>([this] { build(); });
  EXPECT_THAT(message, HasSubstr("one/bad.txt is not UTF-8 at byte 5"));
  expect_nothing_left();
}

TEST_F(BuildTest, EmptyAndTinyDomainsAreErrors) {
  fs::create_directories(from() / "void");
  EXPECT_THAT(error_of<DataError>([this] { build(); }), HasSubstr("domain 'void' is empty"));
  test::put_file(from() / "void" / "a.txt", "only one");
  EXPECT_THAT(error_of<DataError>([this] { build(); }), HasSubstr("domain 'void' has 1 document(s)"));
  fs::rename(from() / "void", from() / "a b");
  EXPECT_THAT(error_of<DataError>([this] { build(); }), HasSubstr("cannot name a domain"));
  expect_nothing_left();
}

TEST_F(BuildTest, WrongUseIsRefusedBeforeAnyWork) {
  options_.heldout_fraction = 0.6;
  EXPECT_THROW(build(), UsageError);
  options_.heldout_fraction = 0.05;
  options_.from = scratch_.path() / "nowhere";
  EXPECT_THAT(error_of<UsageError>([this] { build(); }), HasSubstr("nowhere; expected one that holds a folder of text files"));
  options_.from.clear();
  options_.preset = "mix7";
  EXPECT_THAT(error_of<UsageError>([this] { build(); }), HasSubstr("unknown preset 'mix7'"));
  expect_nothing_left();
}

TEST_F(BuildTest, AFolderInTheWayIsNotTouched) {
  test::put_file(out() / "precious", "data");
  EXPECT_THROW(build(), UsageError);
  EXPECT_EQ(read_file(out() / "precious"), "data");
}

TEST_F(BuildTest, FullDiskLeavesNothing) {
  // A limit on file sizes fails writes as a full disk does, with another reason.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* old_handler = ::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 4000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = error_of<DataError>([this] { build(); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, HasSubstr("File too large"));
  expect_nothing_left();
}

TEST_F(BuildTest, LongFilesAreCutAndCapped) {
  const fs::path folder = scratch_.path() / "from" / "long";
  std::string text;
  while (text.size() < 400000) text += words("long", text.size(), 60) + "\n\n";
  test::put_file(folder / "a.txt", text);
  test::put_file(folder / ".hidden", "not text \xFF");
  const DomainText whole = read_text_folder(folder, 0);
  EXPECT_GE(whole.documents.size(), 4U);
  for (const std::string& document : whole.documents) EXPECT_LE(document.size(), 140000U);
  const DomainText capped = read_text_folder(folder, 200000);
  EXPECT_LE(capped.bytes, 200000);
  EXPECT_EQ(capped.documents.front(), whole.documents.front());
}

// No line end for 64 KB and more: documents end at a space, else between characters, and nothing is lost on the way.
TEST_F(BuildTest, LongTextWithoutLineEndsIsCutAndKeptWhole) {
  const fs::path folder = scratch_.path() / "from" / "endless";
  const std::vector<std::string> letters = {"a", "b", "\u00e9", "\u3042", "\U0001F680"};
  Rng rng(5, "endless");
  for (const bool spaces : {false, true}) {
    std::string text = "x";
    while (text.size() < 1'000'000) text += spaces && rng.below(8) == 0 ? " " : letters[rng.below(letters.size())];
    test::put_file(folder / "a.txt", text);
    const DomainText cut = read_text_folder(folder, 0);
    EXPECT_GE(cut.documents.size(), spaces ? 14U : 5U);
    std::string joined;
    for (const std::string& document : cut.documents) {
      EXPECT_LE(document.size(), 196608U);
      EXPECT_EQ(find_invalid_utf8(document), std::nullopt);
      joined += document;
    }
    EXPECT_EQ(joined, text);
  }
  // A line end within reach is where the cut was before.
  test::put_file(folder / "a.txt", std::string(150'000, 'y') + "\n" + std::string(100'000, 'z'));
  EXPECT_THAT(read_text_folder(folder, 0).documents,
              ElementsAre(std::string(150'000, 'y'), std::string(100'000, 'z')));
}

TEST_F(BuildTest, LinksToFilesAndFoldersAreFollowed) {
  const fs::path folder = scratch_.path() / "linked";
  test::put_file(folder / "a.txt", "plain");
  test::put_file(scratch_.path() / "elsewhere" / "deep" / "b.txt", "behind a link");
  test::put_file(scratch_.path() / "one.txt", "one file");
  fs::create_directory_symlink(scratch_.path() / "elsewhere", folder / "first");
  fs::create_directory_symlink("../elsewhere", folder / "second");  // once more, by a relative link
  fs::create_symlink(scratch_.path() / "one.txt", folder / "z.txt");
  fs::create_symlink("nowhere", folder / ".hidden");
  EXPECT_THAT(read_text_folder(folder, 0).documents, ElementsAre("plain", "behind a link", "one file"));
}

TEST_F(BuildTest, LinksThatLeadNowhereAreNamed) {
  const test::ScratchFolder other;
  const fs::path folder = other.path() / "broken";
  test::put_file(folder / "deep" / "a.txt", "text");
  fs::create_symlink("gone.txt", folder / "deep" / "lost");
  EXPECT_THAT(error_of<DataError>([&] { static_cast<void>(read_text_folder(folder, 0)); }),
              HasSubstr("deep/lost leads to gone.txt, which is not there"));
  fs::remove(folder / "deep" / "lost");
  fs::create_symlink("self", folder / "self");
  EXPECT_THAT(error_of<DataError>([&] { static_cast<void>(read_text_folder(folder, 0)); }), HasSubstr("broken/self leads to self"));
  fs::create_symlink("gone", from() / "domain");
  EXPECT_THAT(error_of<DataError>([this] { build(); }), HasSubstr("/domain leads to gone"));
  expect_nothing_left();
}

TEST_F(BuildTest, LinksInACircleAreNamed) {
  const test::ScratchFolder other;
  const fs::path folder = other.path() / "circle";
  test::put_file(folder / "deep" / "a.txt", "text");
  for (const fs::path& target : {folder / "deep", folder, other.path(), fs::path("/")}) {
    fs::create_directory_symlink(target, folder / "deep" / "back");
    EXPECT_THAT(error_of<DataError>([&] { static_cast<void>(read_text_folder(folder, 0)); }),
                HasSubstr("circle/deep/back leads to " + fs::canonical(target).string() + ", a folder that it lies in"));
    fs::remove(folder / "deep" / "back");
  }
  fs::create_directory_symlink(".", from() / "all");
  EXPECT_THAT(error_of<DataError>([this] { build(); }), HasSubstr("/all leads to"));
  expect_nothing_left();
}

TEST(ChooseHeldout, DoesNotDependOnOrderAndLeavesEnough) {
  DomainText text;
  for (uint64_t i = 0; i < 5000; ++i) text.documents.push_back(words("held", i, 400));
  for (const std::string& document : text.documents) text.bytes += static_cast<int64_t>(document.size()) + 1;
  const std::vector<bool> held = choose_heldout("d", text, 0.05);
  std::set<std::string> chosen;
  int64_t bytes = 0;
  for (size_t i = 0; i < held.size(); ++i) {
    if (!held[i]) continue;
    chosen.insert(text.documents[i]);
    bytes += static_cast<int64_t>(text.documents[i].size()) + 1;
  }
  EXPECT_NEAR(static_cast<double>(bytes) / static_cast<double>(text.bytes), 0.05, 0.002);
  std::reverse(text.documents.begin(), text.documents.end());
  const std::vector<bool> reversed = choose_heldout("d", text, 0.05);
  for (size_t i = 0; i < reversed.size(); ++i) EXPECT_EQ(reversed[i], chosen.contains(text.documents[i]));
}

TEST(ChooseHeldout, OneLongDocumentStaysInTraining) {
  DomainText text;
  text.documents = {std::string(900000, 'x'), "short one", "short two"};
  text.bytes = 900021;
  const std::vector<bool> held = choose_heldout("d", text, 0.05);
  EXPECT_FALSE(held[0]);
  EXPECT_TRUE(held[1] || held[2]);
  EXPECT_THROW((void)choose_heldout("d", DomainText{{"x"}, 2}, 0.05), DataError);
}

TEST(ChooseHeldout, TakesAtMostHalfOfTheBytes) {
  for (uint64_t i = 0; i < 8; ++i) {  // either document may have the smaller hash
    DomainText text;
    text.documents = {words("held", 2 * i, 20000).substr(0, 60000), words("held", 2 * i + 1, 20000).substr(0, 40000)};
    text.bytes = 100002;
    const std::vector<bool> held = choose_heldout("d", text, 0.05);
    EXPECT_FALSE(held[0]);
    EXPECT_TRUE(held[1]);
  }
}

// Packages with the least that the recipes of mix8 read.
void make_mix8_packages(const fs::path& folder) {
  const auto help = [&](const std::string& language) {
    std::vector<std::pair<std::string, std::string>> files;
    for (uint64_t i = 0; i < 8; ++i) {
      const std::string mark =
          language == "ja" || language == "ru" ? "\u3042\u0416\u3042\u0416\u3042\u0416\u3042\u0416\u3042\u0416" : "";
      std::string body = "<div id=\"DisplayArea\"><p>shared English</p>";
      for (uint64_t p = 0; p < 9; ++p) body += "<p>" + mark + words(language, i * 9 + p, 3) + "</p>";
      files.emplace_back("usr/share/libreoffice/help/" + language + "/text/" + std::to_string(i) + ".html", body);
    }
    test::make_deb(folder, {.name = "libreoffice-help-" + language, .files = files});
  };
  help("en-us");
  for (const std::string language : {"de", "fr", "ja", "ru"}) {
    help(language);
    for (const std::string end : {"", "-dev"}) {
      test::make_deb(folder, {.name = "manpages-" + language + end,
                              .files = {{"usr/share/man/" + language + "/man1/x.1.gz",
                                         test::deflated(".SH A\n" + words(language + end, 1, 99), test::Container::Gzip)}}});
    }
  }
  std::string fasta, database;
  for (uint64_t i = 0; i < 30; ++i) fasta += ">s\n" + words("a", i, 40) + "\n";
  while (database.size() < 300000) database += words("proof", database.size(), 500) + "\n\n";
  test::make_deb(folder, {.name = "pychess",
                          .files = {{"usr/share/pychess/learn/a.olv", words("p", 1, 99) + "\n---\n" + words("p", 2, 99)}}});
  test::make_deb(folder,
                 {.name = "libeigen3-dev",
                  .files = {{"usr/include/eigen3/A", words("cpp", 1, 99)}, {"usr/include/eigen3/B", words("cpp", 2, 99)}}});
  test::make_deb(folder, {.name = "microbiomeutil-data",
                          .files = {{"usr/share/microbiomeutil-data/RESOURCES/rRNA16S.gold.fasta", fasta}}});
  test::make_deb(
      folder, {.name = "metamath-databases", .version = "0.1-2", .files = {{"usr/share/metamath/databases/set.mm", database}}});
}

TEST(BuildPreset, FromPackages) {
  const test::ScratchFolder scratch;
  make_mix8_packages(scratch.path() / "");
  BuildOptions options;
  options.preset = "mix8";
  options.out = scratch.path() / "set";
  options.tokenizer.vocab_size = 340;
  options.cap_bytes = 200000;
  FolderFetcher fetcher(scratch.path());
  Recorder recorder;
  build_dataset(options, fetcher, recorder);
  EXPECT_THAT(recorder.phases, ElementsAre("download", "extract", "tokenizer", "encode"));
  const Dataset dataset(options.out);
  EXPECT_THAT(dataset.domain_names(), ElementsAre("chess", "cpp", "de", "dna", "fr", "ja", "metamath", "ru"));
  const DomainRecord& metamath = dataset.manifest().domains[6];
  EXPECT_LE(metamath.text_bytes, 200000);
  EXPECT_EQ(metamath.packages.at(0).version, "0.1-2");
  EXPECT_EQ(metamath.packages[0].sha256, sha256_file(scratch.path() / metamath.packages[0].file));
  EXPECT_EQ(metamath.license, "CC0-1.0");
  const Tokenizer tokenizer(dataset.tokenizer_path());
  for (const std::string& document : documents_of(dataset, tokenizer, 2, Split::Train))
    EXPECT_THAT(document, ::testing::Not(HasSubstr("shared English")));

  fs::remove(scratch.path() / "pychess_1.0-1_all.deb");
  options.out = scratch.path() / "other";
  EXPECT_THAT(error_of<DataError>([&] { build_dataset(options, fetcher, recorder); }),
              HasSubstr("no package file for pychess"));
  test::make_deb(scratch.path(), {.name = "pychess", .files = {{"usr/share/doc/readme", "nothing to read"}}});
  EXPECT_THAT(error_of<DataError>([&] { build_dataset(options, fetcher, recorder); }),
              HasSubstr("domain 'chess' came out empty"));
  EXPECT_FALSE(fs::exists(options.out));
}

}  // namespace
}  // namespace switchyard
