#pragma once
// Made-up files and packages for the tests of this folder.

#include <filesystem>
#include <string>
#include <vector>

#include "switchyard/data/dataset.hpp"
#include "tests/data/made_dataset.hpp"
#include "tests/scratch_folder.hpp"

namespace switchyard::test {

/// Writes bytes, making missing parents.
void put_file(const std::filesystem::path& path, std::string_view bytes);

/// Writes a .deb with the given files, a symbolic link `link` -> the first file and a hard link `hard` -> the first file when
/// these names are given. Returns its path.
struct DebContent {
  std::string name;
  std::string version = "1.0-1";
  std::vector<std::pair<std::string, std::string>> files = {};
  std::string symbolic_link = {};
  std::string hard_link = {};
};
std::filesystem::path make_deb(const std::filesystem::path& folder, const DebContent& content);

/// gzip of the bytes; a zlib stream with Container::Zlib.
enum class Container { Gzip, Zlib };
std::string deflated(std::string_view bytes, Container container);

/// The message of the error that `act` throws; fails the test if it throws none or another type.
template <typename ErrorType, typename Act>
std::string error_of(const Act& act) {
  try {
    act();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "(no error was thrown)";
}

}  // namespace switchyard::test
