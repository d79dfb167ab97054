// A small driver for tests and development; users have `switchyard data build`.
//
//   data_tool build OUT PRESET|FOLDER [CAP_BYTES]   a data set, progress on standard error
//   data_tool text RECIPE DEB_FOLDER OUT [CAP]      one domain's text, each document followed by a NUL
//   data_tool encode MODEL                          lines of JSON strings in, lines of JSON arrays of ids out
//   data_tool decode MODEL                          the other way round
//   data_tool speed SHARD                           MB/s of reading

#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "switchyard/core/error.hpp"
#include "switchyard/data/build.hpp"
#include "switchyard/data/recipes.hpp"
#include "switchyard/data/shard.hpp"

namespace switchyard {
namespace {

using Arguments = std::vector<std::string>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Printed : public Progress {
 public:
  void report(std::string_view phase, int64_t done, int64_t total) override {
    std::cerr << seconds_since(start_) << " s  " << phase << ' ' << done << '/' << total << '\n';
  }

 private:
  Clock::time_point start_ = Clock::now();
};

void build(const Arguments& arguments) {
  BuildOptions options;
  options.out = arguments.at(0);
  if (std::filesystem::is_directory(arguments.at(1))) {
    options.from = arguments[1];
  } else {
    options.preset = arguments[1];
  }
  if (arguments.size() > 2) options.cap_bytes = std::stoll(arguments[2]);
  Printed progress;
  build_dataset(options, progress);
}

void text(const Arguments& arguments) {
  const Recipe& recipe = find_recipe(arguments.at(0));
  FolderFetcher fetcher(arguments.at(1));
  const PackagePaths paths = fetcher.fetch({recipe.packages.begin(), recipe.packages.end()});
  const PackageReader read = [&](std::string_view package, const FileFilter& wanted) {
    return read_package(paths.at(std::string(package)), wanted);
  };
  DocumentSink sink(arguments.size() > 3 ? std::stoll(arguments[3]) : 0);
  recipe.extract(read, sink);
  std::ofstream out(arguments.at(2), std::ios::binary);
  for (const std::string& document : sink.take().documents) out << document << '\0';
}

void encode(const Arguments& arguments) {
  const Tokenizer tokenizer{std::filesystem::path(arguments.at(0))};
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << nlohmann::json(tokenizer.encode(nlohmann::json::parse(line).get<std::string>())).dump() << '\n';
  }
}

void decode(const Arguments& arguments) {
  const Tokenizer tokenizer{std::filesystem::path(arguments.at(0))};
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = nlohmann::json::parse(line).get<std::vector<int32_t>>();
    std::cout << nlohmann::json(tokenizer.decode(ids)).dump() << '\n';
  }
}

void speed(const Arguments& arguments) {
  const Clock::time_point opened = Clock::now();
  const TokenShard shard(arguments.at(0), ShardCheck::Structure);
  std::vector<int64_t> tokens(513);
  int64_t sum = 0;
  int64_t read = 0;
  for (int64_t first = 0; first + 513 <= shard.num_tokens(); first += 512, read += 512) {
    shard.copy_tokens(first, std::span<int64_t>(tokens));
    sum += tokens[0];
  }
  const double mega_bytes = static_cast<double>(read * shard.bytes_per_token()) / 1e6;
  std::cout << mega_bytes / seconds_since(opened) << " MB/s in windows of 513 tokens (sum " << sum << ")\n";
  const Clock::time_point checked = Clock::now();
  const TokenShard whole(arguments[0], ShardCheck::Tokens);
  std::cout << mega_bytes / seconds_since(checked) << " MB/s opening with the CRC\n";
}

int run(int count, char** words) {
  if (count < 3) {
    std::cerr << "usage: data_tool build|text|encode|decode|speed ...\n";
    return 2;
  }
  const std::string verb = words[1];
  const Arguments arguments(words + 2, words + count);
  if (verb == "build")
    build(arguments);
  else if (verb == "text")
    text(arguments);
  else if (verb == "encode")
    encode(arguments);
  else if (verb == "decode")
    decode(arguments);
  else if (verb == "speed")
    speed(arguments);
  else
    return 2;
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int count, char** words) {
  try {
    return switchyard::run(count, words);
  } catch (const std::exception& error) {
    std::cerr << "data_tool: " << error.what() << '\n';
    return 1;
  }
}
