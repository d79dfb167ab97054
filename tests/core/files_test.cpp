#include "switchyard/core/files.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/folder_lock.hpp"
#include "tests/file_size_limit.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

class FilesTest : public testing::Test {
 protected:
  [[nodiscard]] size_t num_entries() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  test::ScratchFolder scratch_;
  fs::path folder_ = scratch_.path();
};

TEST_F(FilesTest, WriteReplacesTheWholeFile) {
  const fs::path path = folder_ / "a.txt";
  write_file_atomically(path, "first, longer");
  write_file_atomically(path, std::string_view("se\0cond", 7));
  EXPECT_EQ(read_file(path), std::string("se\0cond", 7));
  EXPECT_EQ(num_entries(), 1U);
}

TEST_F(FilesTest, StreamTakesMoreThanItsBufferAndTellsItsPosition) {
  const std::string block(100'000, 'x');
  std::vector<std::streamoff> positions;
  write_file_atomically(folder_ / "big", [&](std::ostream& out) {
    for (int i = 0; i < 20; ++i) {
      positions.push_back(out.tellp());
      out << block << i << '\n';
    }
    out << std::string(1'000'000, 'y');
  });
  EXPECT_EQ(positions[0], 0);
  EXPECT_EQ(positions[1], 100'002);
  const std::string content = read_file(folder_ / "big");
  EXPECT_EQ(content.size(), 20U * 100'001U + 10U + 20U + 1'000'000U);
  EXPECT_EQ(content.substr(100'000, 4), "0\nxx");
  EXPECT_EQ(content.back(), 'y');
}

TEST_F(FilesTest, FailedWriterLeavesTheOldFileAndNothingElse) {
  const fs::path path = folder_ / "a.txt";
  write_file_atomically(path, "old");
  EXPECT_THROW(write_file_atomically(path,
                                     [](std::ostream& out) {
                                       out << "half";
                                       throw StateError("stop");
                                     }),
               StateError);
  EXPECT_THROW(write_file_atomically(path, [](std::ostream& out) { out.setstate(std::ios::failbit); }), DataError);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(num_entries(), 1U);
}

TEST_F(FilesTest, FullDiskLeavesTheOldFileAndSaysWhy) {
  const fs::path path = folder_ / "a.bin";
  write_file_atomically(path, "old");
  const auto overfill = [&] {
    const test::FileSizeLimit limit(4096);
    write_file_atomically(path, std::string(1'000'000, 'x'));
  };
  EXPECT_THAT(overfill, ThrowsMessage<DataError>(AllOf(HasSubstr(path.string()), HasSubstr("File too large"))));
  // A small file fails only when the buffer is flushed at the end.
  const auto overfill_late = [&] {
    const test::FileSizeLimit limit(4096);
    write_file_atomically(path, std::string(5000, 'x'));
  };
  EXPECT_THAT(overfill_late, ThrowsMessage<DataError>(HasSubstr("File too large")));
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(num_entries(), 1U);
}

TEST_F(FilesTest, RefusesWhatCannotBeReplaced) {
  EXPECT_THAT([] { write_file_atomically("/dev/null", "x"); },
              ThrowsMessage<DataError>(HasSubstr("/dev/null: not a regular file")));
  EXPECT_THROW(write_file_atomically(folder_, "x"), DataError);
  EXPECT_THAT([&] { write_file_atomically(folder_ / "no" / "a", "x"); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("no/a"), HasSubstr("No such file"))));
}

TEST_F(FilesTest, WriteFollowsALink) {
  write_file_atomically(folder_ / "real", "old");
  fs::create_symlink("real", folder_ / "link");
  write_file_atomically(folder_ / "link", "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_file(folder_ / "real"), "new");
}

TEST_F(FilesTest, ThreadsMayWriteTheSameFile) {
  const fs::path path = folder_ / "shared";
  std::vector<std::thread> threads;
  for (char letter = 'a'; letter < 'e'; ++letter) {
    threads.emplace_back([&path, letter] {
      for (int i = 0; i < 20; ++i) write_file_atomically(path, std::string(1000, letter));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string content = read_file(path);
  EXPECT_EQ(content, std::string(1000, content[0]));
  EXPECT_EQ(num_entries(), 1U);
}

TEST_F(FilesTest, StagedFolderAppearsWholeOnCommit) {
  const fs::path target = folder_ / "deep" / "step_10";
  StagedFolder staged(target / "");
  EXPECT_EQ(staged.path(), folder_ / "deep" / (".step_10.part-" + std::to_string(::getpid())));
  fs::create_directory(staged.path() / "sub");
  std::ofstream(staged.path() / "sub" / "a") << "content";
  EXPECT_FALSE(fs::exists(target));
  staged.commit();
  EXPECT_EQ(staged.path(), target);
  EXPECT_EQ(read_file(target / "sub" / "a"), "content");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_ / "deep"), fs::directory_iterator()), 1);
  EXPECT_THROW(staged.commit(), StateError);
}

TEST_F(FilesTest, StagedFolderVanishesWithoutCommit) {
  {
    const StagedFolder staged(folder_ / "run");
    std::ofstream(staged.path() / "a") << "content";
  }
  EXPECT_EQ(num_entries(), 0U);
}

TEST_F(FilesTest, StagedFolderRemovesWhatAKilledProcessLeft) {
  const fs::path left = folder_ / (".run.part-" + std::to_string(::getpid()));
  fs::create_directory(left);
  std::ofstream(left / "old") << "content";
  StagedFolder staged(folder_ / "run");
  EXPECT_TRUE(fs::is_empty(staged.path()));
}

TEST_F(FilesTest, StagedFolderRefusesAnExistingTarget) {
  fs::create_directory(folder_ / "run");
  EXPECT_THAT([&] { StagedFolder(folder_ / "run"); }, ThrowsMessage<UsageError>(HasSubstr("exists already")));
  fs::create_symlink("nowhere", folder_ / "link");
  EXPECT_THROW(StagedFolder(folder_ / "link"), UsageError);
  EXPECT_THROW(StagedFolder(""), DataError);
}

TEST_F(FilesTest, StagedFolderDoesNotReplaceATargetThatCameMeanwhile) {
  StagedFolder staged(folder_ / "run");
  fs::create_directory(folder_ / "run");
  std::ofstream(folder_ / "run" / "a") << "content";
  EXPECT_THROW(staged.commit(), DataError);
  EXPECT_EQ(read_file(folder_ / "run" / "a"), "content");
}

// What cannot be seen is neither there nor absent: a loop of links stands for a missing right, which root has always.
TEST_F(FilesTest, ToldApartFromAbsenceIsWhatCannotBeLookedAt) {
  fs::create_symlink("loop", folder_ / "loop");
  fs::create_symlink("nowhere", folder_ / "dangling");
  std::ofstream(folder_ / "file") << "x";
  EXPECT_TRUE(path_exists(folder_) && folder_exists(folder_) && path_exists(folder_ / "file"));
  for (const char* absent : {"none", "dangling", "file/below", "none/below"}) {
    EXPECT_FALSE(path_exists(folder_ / absent) || folder_exists(folder_ / absent)) << absent;
  }
  EXPECT_FALSE(folder_exists(folder_ / "file"));
  for (const std::string& name : {std::string("loop"), std::string("loop/below"), std::string(300, 'a')}) {
    const auto says = ThrowsMessage<DataError>(AllOf(HasSubstr("cannot look at " + (folder_ / name).string() + ": ")));
    EXPECT_THAT([&] { (void)path_exists(folder_ / name); }, says);
    EXPECT_THAT([&] { (void)folder_exists(folder_ / name); }, says);
  }
}

TEST_F(FilesTest, StagedFolderNamesItsTargetWhereItCannotBeMade) {
  const std::string name(250, 'a');  // the name beside it is longer
  EXPECT_THAT([&] { StagedFolder(folder_ / name); },
              ThrowsMessage<DataError>(HasSubstr("cannot create folder " + (folder_ / name).string() + ": File name too long")));
}

TEST(FolderName, IsTheLastNameHoweverThePathIsWritten) {
  EXPECT_EQ(folder_name("data/mix8"), "mix8");
  EXPECT_EQ(folder_name("data/mix8/"), "mix8");
  EXPECT_EQ(folder_name("data/other/../mix8/."), "mix8");
  EXPECT_EQ(folder_name("."), fs::current_path().filename());
  EXPECT_EQ(folder_name("/"), "");
}

TEST_F(FilesTest, ReadNamesTheFileItCannotRead) {
  EXPECT_THAT([&] { (void)read_file(folder_ / "none"); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("none"), HasSubstr("No such file"))));
  EXPECT_THROW((void)read_file(folder_), DataError);
  EXPECT_THROW((void)sha256_file(folder_ / "none"), DataError);
}

TEST_F(FilesTest, OneLockAtATimeHoldsAFolder) {
  std::unique_ptr<FolderLock> first = FolderLock::take(folder_, "the folder");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(FolderLock::take(folder_, "the folder"), nullptr);
  first.reset();
  EXPECT_NE(FolderLock::take(folder_, "the folder"), nullptr);
  EXPECT_THAT([&] { (void)FolderLock::take(folder_ / "none", "the folder none"); },
              ThrowsMessage<DataError>(AllOf(HasSubstr("cannot write in the folder none"), HasSubstr("No such file"))));
}

TEST_F(FilesTest, ALockKnowsWhetherItHoldsWhatIsThere) {
  const fs::path run = folder_ / "run", moved = folder_ / "moved";
  fs::create_directory(run);
  const std::unique_ptr<FolderLock> lock = FolderLock::take(run, "the folder");
  EXPECT_TRUE(lock->folder_is_in_place() && lock->file_is_in_place());
  fs::remove(run / FolderLock::kFileName);
  EXPECT_TRUE(lock->folder_is_in_place());
  EXPECT_FALSE(lock->file_is_in_place());
  const std::unique_ptr<FolderLock> other = FolderLock::take(run, "the folder");
  EXPECT_FALSE(lock->file_is_in_place());
  EXPECT_TRUE(other->file_is_in_place());
  fs::rename(run, moved);
  EXPECT_FALSE(other->folder_is_in_place());
  fs::create_directory(run);
  EXPECT_FALSE(other->folder_is_in_place());
}

TEST_F(FilesTest, Sha256MatchesTheStandard) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string million(1'000'000, 'a');
  write_file_atomically(folder_ / "million", million);
  EXPECT_EQ(sha256_file(folder_ / "million"), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(sha256_hex(million), sha256_file(folder_ / "million"));
}

}  // namespace
}  // namespace switchyard
