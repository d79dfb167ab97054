#include <gmock/gmock.h>

#include <set>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/data/package_archive.hpp"
#include "switchyard/data/package_fetch.hpp"
#include "switchyard/data/recipes.hpp"
#include "tests/data/support.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;

TEST(PackageArchive, ReadsFilesSortedAndFiltered) {
  const test::ScratchFolder scratch;
  test::DebContent content{.name = "demo",
                           .version = "1:2.0-3",
                           .files = {{"usr/b.txt", "bee"}, {"usr/a.txt", std::string(300000, 'a')}, {"usr/c.bin", "c"}}};
  content.symbolic_link = "usr/link.txt";
  content.hard_link = "usr/hard.txt";
  const fs::path deb = test::make_deb(scratch.path(), content);
  std::vector<std::string> paths;
  for (const PackageFile& file : read_package(deb, [](std::string_view path) { return path.ends_with(".txt"); })) {
    paths.push_back(file.path);
    EXPECT_EQ(file.bytes, file.path == "usr/a.txt" ? std::string(300000, 'a') : "bee");
  }
  EXPECT_THAT(paths, ElementsAre("usr/a.txt", "usr/b.txt", "usr/hard.txt"));
  const PackageControl control = read_package_control(deb);
  EXPECT_EQ(control.name, "demo");
  EXPECT_EQ(control.version, "1:2.0-3");
}

TEST(PackageArchive, DamageNamesTheFile) {
  const test::ScratchFolder scratch;
  const auto all = [](std::string_view) { return true; };
  const fs::path deb = test::make_deb(scratch.path(), {.name = "demo", .files = {{"a", std::string(5000, 'a')}}});
  fs::resize_file(deb, fs::file_size(deb) - 100);
  EXPECT_THAT(error_of<DataError>([&] { (void)read_package(deb, all); }), HasSubstr("demo_1.0-1_all.deb"));
  test::put_file(scratch.path() / "x.deb", "not an archive");
  EXPECT_THAT(error_of<DataError>([&] { (void)read_package(scratch.path() / "x.deb", all); }), HasSubstr("x.deb"));
  EXPECT_THAT(error_of<DataError>([&] { (void)read_package(scratch.path() / "none.deb", all); }), HasSubstr("none.deb"));
  test::DebContent content{.name = "links", .files = {{"a", "x"}}};
  content.hard_link = "b";
  const fs::path links = test::make_deb(scratch.path(), content);
  EXPECT_THAT(error_of<DataError>([&] { (void)read_package(links, [](std::string_view path) { return path == "b"; }); }),
              HasSubstr("hard link to a"));
}

TEST(PackageFetch, FindsFilesByPattern) {
  const test::ScratchFolder scratch;
  for (const std::string name :
       {"libpython3.9-stdlib_3.9_all.deb", "libpython3.11-stdlib_3.11_all.deb", "libpython3.11-stdlib-extra_1_all.deb",
        "libpython3.x-stdlib_9_all.deb", "demo_1_all.deb", "demo-data_1_all.deb", "demo.txt"}) {
    test::put_file(scratch.path() / name, "");
  }
  const auto found = [&](std::string_view pattern) { return find_package_file(scratch.path(), pattern).filename().string(); };
  EXPECT_EQ(found("demo"), "demo_1_all.deb");
  EXPECT_EQ(found("libpython3.*-stdlib"), "libpython3.11-stdlib_3.11_all.deb");
  EXPECT_EQ(found("libpython3.9-stdlib"), "libpython3.9-stdlib_3.9_all.deb");
  EXPECT_EQ(found("absent"), "");
  fs::last_write_time(scratch.path() / "demo_1_all.deb", fs::file_time_type::clock::now() - std::chrono::hours(1));
  test::put_file(scratch.path() / "demo_0.9_all.deb", "");
  EXPECT_EQ(found("demo"), "demo_0.9_all.deb") << "the one written last";
  EXPECT_THAT(error_of<DataError>([&] {
                (void)FolderFetcher(scratch.path()).fetch({"demo", "absent", "gone"});
              }),
              HasSubstr("absent, gone"));
}

// A stand-in for apt-get and apt-cache on a PATH of its own. `script` is the body of apt-get.
class FakeApt {
 public:
  explicit FakeApt(const std::string& script) : old_path_(::getenv("PATH")) {
    put("apt-get", "echo \"apt-get $*\" >> '" + log().string() + "'\n" + script);
    put("apt-cache", "echo libpython3.9-stdlib; echo libpython3.13-stdlib; echo libpython3.13-stdlib-x");
    ::setenv("PATH", (scratch_.path().string() + ":" + old_path_).c_str(), 1);
  }
  ~FakeApt() { ::setenv("PATH", old_path_.c_str(), 1); }
  FakeApt(const FakeApt&) = delete;
  FakeApt& operator=(const FakeApt&) = delete;
  [[nodiscard]] fs::path cache() const { return scratch_.path() / "cache"; }
  [[nodiscard]] std::string calls() const { return fs::exists(log()) ? read_file(log()) : ""; }
  [[nodiscard]] fs::path root() const { return scratch_.path(); }

 private:
  [[nodiscard]] fs::path log() const { return scratch_.path() / "calls"; }
  void put(const std::string& name, const std::string& script) {
    test::put_file(scratch_.path() / name, "#!/bin/sh\n" + script + "\n");
    fs::permissions(scratch_.path() / name, fs::perms::owner_all);
  }
  test::ScratchFolder scratch_;
  std::string old_path_;
};

TEST(AptFetcher, DownloadsOnceAndResolvesNames) {
  const FakeApt apt(R"(for p in "$@"; do case $p in demo|libpython*) : > ${p}_1_all.deb;; esac; done)");
  AptFetcher fetcher(apt.cache());
  const PackagePaths paths = fetcher.fetch({"demo", "libpython3.*-stdlib"});
  EXPECT_EQ(paths.at("demo"), apt.cache() / "demo_1_all.deb");
  EXPECT_THAT(paths.at("libpython3.*-stdlib").string(), EndsWith("libpython3.13-stdlib_1_all.deb"));
  const std::string calls = apt.calls();
  EXPECT_THAT(calls, HasSubstr("download demo libpython3.13-stdlib\n"));
  EXPECT_EQ(fetcher.fetch({"demo"}).at("demo"), paths.at("demo"));
  EXPECT_EQ(apt.calls(), calls) << "a cached package is not downloaded again";
  EXPECT_EQ(std::distance(fs::directory_iterator(apt.cache()), fs::directory_iterator()), 2) << "no download folder is left";
}

TEST(AptFetcher, UpdatesOnceWhenAPackageIsNotFound) {
  // Fails until an update was seen.
  const FakeApt apt(R"(here=$(dirname "$0")
case "$*" in
  *update*) : > "$here/updated";;
  *) [ -e "$here/updated" ] || { echo "E: Unable to locate package demo" >&2; exit 100; }; : > demo_1_all.deb;;
esac)");
  EXPECT_NO_THROW((void)AptFetcher(apt.cache()).fetch({"demo"}));
}

TEST(AptFetcher, FailureSaysWhatAptSaidAndLeavesNothing) {
  const FakeApt apt(R"(: > half_1_all.deb; echo "E: Could not resolve host" >&2; exit 100)");
  const std::string message = error_of<DataError>([&] { (void)AptFetcher(apt.cache()).fetch({"demo", "half"}); });
  EXPECT_THAT(message, HasSubstr("cannot download demo, half: E: Could not resolve host"));
  EXPECT_THAT(message, HasSubstr("--from DIR"));
  EXPECT_TRUE(fs::is_empty(apt.cache()));
}

TEST(RecipeTable, PresetsAndNames) {
  EXPECT_EQ(find_preset("mix16").domains.size(), 16U);
  EXPECT_THAT(find_preset("mix8").domains, ElementsAre("chess", "cpp", "de", "dna", "fr", "ja", "metamath", "ru"));
  for (const std::string_view name : find_preset("mix16").domains) {
    const Recipe& recipe = find_recipe(name);
    EXPECT_FALSE(recipe.packages.empty());
    EXPECT_FALSE(recipe.license.empty());
    EXPECT_FALSE(recipe.description.empty());
  }
  EXPECT_THAT(error_of<UsageError>([] { (void)find_preset("mix9"); }), HasSubstr("did you mean 'mix8'"));
  EXPECT_THAT(error_of<UsageError>([] { (void)find_recipe("chees"); }), HasSubstr("did you mean 'chess'"));
}

// Each recipe reads only packages that it names; otherwise a build would fail after the download.
TEST(RecipeTable, RecipesReadWhatTheyName) {
  for (const Recipe& recipe : recipe_table()) {
    std::set<std::string> read;
    DocumentSink sink(0);
    recipe.extract(
        [&](std::string_view package, const FileFilter&) {
          read.emplace(package);
          return std::vector<PackageFile>{};
        },
        sink);
    EXPECT_EQ(read, std::set<std::string>(recipe.packages.begin(), recipe.packages.end())) << recipe.name;
  }
}

}  // namespace
}  // namespace switchyard
