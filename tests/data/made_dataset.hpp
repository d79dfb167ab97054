#pragma once
// Data sets written token by token.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace switchyard::test {

/// A data set folder whose shards hold the given documents (tokens without the ending 2, which is added).
struct DomainTokens {
  std::vector<std::vector<int32_t>> train;
  std::vector<std::vector<int32_t>> heldout;
};
void make_dataset(const std::filesystem::path& folder, const std::map<std::string, DomainTokens>& domains, int64_t vocab_size);

}  // namespace switchyard::test
