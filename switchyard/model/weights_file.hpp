#pragma once
// Tensors in a safetensors file: 8 bytes of header length, a JSON header, the raw data. Format: huggingface/safetensors
// README, "Format".

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace switchyard {

using TensorMap = std::map<std::string, at::Tensor>;
using TensorMetadata = std::map<std::string, std::string>;

struct TensorFile {
  TensorMap tensors;
  TensorMetadata metadata;
};

/// Written aside and renamed. Types: double, fp32, fp16, bf16, int64 to int8, uint8, bool; strided tensors are made
/// contiguous. The same tensors and metadata give the same bytes.
/// @throws DataError when the file cannot be written, UsageError for a type the format has not or the name "__metadata__"
void save_tensors(const std::filesystem::path& path, const TensorMap& tensors, const TensorMetadata& metadata = {});

/// A tensor that is made when its turn to be written has come, and let go after that.
struct TensorToSave {
  at::ScalarType type = at::kFloat;
  std::vector<int64_t> sizes;
  std::function<at::Tensor()> make;  // of that type and those sizes
};
using TensorsToSave = std::map<std::string, TensorToSave>;

/// Tensors that are there already. @throws UsageError for one that is undefined
[[nodiscard]] TensorsToSave to_save(const TensorMap& tensors);

/// The same file from tensors that are made one at a time.
void save_tensors(const std::filesystem::path& path, const TensorsToSave& tensors, const TensorMetadata& metadata = {});
/// The names in the order in which save_tensors() makes them.
[[nodiscard]] std::vector<std::string> order_of_making(const TensorsToSave& tensors);

/// The tensors lie in the file, which stays mapped as long as one of them is kept: pages are read when they are used, ranks on one
/// machine share them, and parts that are not asked for cost nothing. Writing into one changes this process's copy alone.
/// @throws DataError naming the file and what is wrong: not a safetensors file, cut short, overlapping or missing bytes, a
///     size that does not fit its shape, an unknown type
[[nodiscard]] TensorFile load_tensors(const std::filesystem::path& path);

}  // namespace switchyard
