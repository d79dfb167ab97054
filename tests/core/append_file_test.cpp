#include "switchyard/core/append_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "tests/file_size_limit.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

TEST(AppendFile, HoldsWholeRecordsAlone) {
  const test::ScratchFolder folder;
  const fs::path path = folder.path() / "log";
  AppendFile file(path);
  EXPECT_EQ(file.append("first\n"), 0);
  {
    const test::FileSizeLimit disk(10);
    EXPECT_EQ(file.append("second\n"), EFBIG);
    EXPECT_EQ(read_file(path), "first\n");
    EXPECT_EQ(file.append("2nd\n"), 0);
  }
  EXPECT_EQ(file.append("third\n"), 0);
  EXPECT_EQ(read_file(path), "first\n2nd\nthird\n");
  EXPECT_EQ(AppendFile(path).append("fourth\n"), 0);
  EXPECT_EQ(read_file(path), "first\n2nd\nthird\nfourth\n");
  EXPECT_NO_THROW(file.sync());
}

TEST(AppendFile, KnowsWhetherItIsStillThere) {
  const test::ScratchFolder folder;
  const fs::path path = folder.path() / "log", moved = folder.path() / "moved";
  const AppendFile file(path);
  EXPECT_TRUE(file.is_in_place());
  fs::rename(path, moved);
  EXPECT_FALSE(file.is_in_place());
  { const AppendFile other(path); }
  EXPECT_FALSE(file.is_in_place());
  fs::rename(moved, path);
  EXPECT_TRUE(file.is_in_place());
  fs::remove_all(folder.path());
  EXPECT_FALSE(file.is_in_place());
}

TEST(AppendFile, NamesTheFileThatCannotBeMade) {
  const test::ScratchFolder folder;
  EXPECT_THAT([&] { AppendFile(folder.path() / "none" / "log"); },
              testing::ThrowsMessage<DataError>(testing::AllOf(testing::HasSubstr("none/log"), testing::HasSubstr("No such file"))));
}

}  // namespace
}  // namespace switchyard
