#include "switchyard/model/weights_file.hpp"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/accumulate.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <tuple>
#include <vector>

#include "switchyard/core/error.hpp"
#include "switchyard/core/files.hpp"
#include "switchyard/core/text.hpp"

namespace switchyard {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little, "the file format is little-endian and written as memory lies");

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr uint64_t kLargestHeader = 100'000'000;  // the limit of the reference implementation
constexpr size_t kAlignment = 8;

struct TypeName {
  at::ScalarType type;
  std::string_view name;
};
constexpr std::array kTypes = {TypeName{at::kDouble, "F64"}, TypeName{at::kFloat, "F32"}, TypeName{at::kHalf, "F16"},
                               TypeName{at::kBFloat16, "BF16"}, TypeName{at::kLong, "I64"}, TypeName{at::kInt, "I32"},
                               TypeName{at::kShort, "I16"}, TypeName{at::kChar, "I8"}, TypeName{at::kByte, "U8"},
                               TypeName{at::kBool, "BOOL"}};

std::string_view type_name(at::ScalarType type, const std::string& tensor) {
  for (const TypeName& entry : kTypes) {
    if (entry.type == type) return entry.name;
  }
  throw UsageError(join_text("tensor '", tensor, "' is ", type, ", which a safetensors file cannot hold; convert it first"));
}

uint64_t bytes_of(const TensorToSave& tensor) {
  return c10::elementSize(tensor.type) * static_cast<uint64_t>(c10::multiply_integers(tensor.sizes));
}

// Large elements first, as the reference writer does: each tensor is aligned to its element size without gaps.
std::vector<TensorsToSave::const_iterator> file_order(const TensorsToSave& tensors) {
  std::vector<TensorsToSave::const_iterator> order;
  for (auto entry = tensors.begin(); entry != tensors.end(); ++entry) order.push_back(entry);
  std::stable_sort(order.begin(), order.end(), [](const auto& left, const auto& right) {
    return c10::elementSize(left->second.type) > c10::elementSize(right->second.type);
  });
  return order;
}

std::string make_header(const std::vector<TensorsToSave::const_iterator>& order, const TensorMetadata& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  uint64_t begin = 0;
  for (const auto& entry : order) {
    const auto& [name, tensor] = *entry;
    SWITCHYARD_CHECK(name != kMetadataKey, UsageError, "a tensor cannot be called ", kMetadataKey);
    const uint64_t end = begin + bytes_of(tensor);
    header[name] = {{"dtype", type_name(tensor.type, name)}, {"shape", tensor.sizes}, {"data_offsets", {begin, end}}};
    begin = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return text;
}

struct StoredTensor {
  std::string name;
  at::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

at::ScalarType parse_type(const std::string& name, const std::string& where) {
  for (const TypeName& entry : kTypes) {
    if (entry.name == name) return entry.type;
  }
  throw DataError(join_text(where, ": unknown type '", name, "'"));
}

StoredTensor parse_tensor(const std::string& name, const Json& fields, const std::string& file) {
  const std::string where = join_text(file, ": tensor '", name, "'");
  StoredTensor stored;
  stored.name = name;
  try {
    stored.type = parse_type(fields.at("dtype").get<std::string>(), where);
    stored.shape = fields.at("shape").get<std::vector<int64_t>>();
    const auto offsets = fields.at("data_offsets").get<std::array<uint64_t, 2>>();
    stored.begin = offsets[0];
    stored.end = offsets[1];
  } catch (const Json::exception& error) {
    throw DataError(join_text(where, " has a header entry that cannot be read: ", without_error_name(error.what()),
                              "; the file is damaged: get it again, or use an earlier checkpoint"));
  }
  uint64_t bytes = c10::elementSize(stored.type);
  for (const int64_t size : stored.shape) {
    SWITCHYARD_CHECK(size >= 0, DataError, where, " has a negative size ", size);
    SWITCHYARD_CHECK(!__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes), DataError, where,
                     " has a shape that is too large");
  }
  SWITCHYARD_CHECK(stored.begin <= stored.end && stored.end - stored.begin == bytes, DataError, where, " lies at bytes ",
                   stored.begin, " to ", stored.end, "; its shape ", c10::IntArrayRef(stored.shape), " takes ", bytes);
  return stored;
}

void check_layout(std::vector<StoredTensor>& stored, uint64_t data_bytes, const std::string& file) {
  std::sort(stored.begin(), stored.end(), [](const auto& left, const auto& right) {
    return std::tie(left.begin, left.end) < std::tie(right.begin, right.end);
  });
  uint64_t end = 0;
  for (const StoredTensor& tensor : stored) {
    SWITCHYARD_CHECK(tensor.begin == end, DataError, file, ": tensor '", tensor.name, "' begins at byte ", tensor.begin,
                     " where the one before ends at ", end, "; tensors must neither overlap nor leave gaps");
    end = tensor.end;
  }
  SWITCHYARD_CHECK(end == data_bytes, DataError, file, ": tensors take ", end, " bytes, the file holds ", data_bytes,
                   "; it was cut short or appended to");
}

// A whole file in memory. Private: what is written stays in this process.
class MappedFile {
 public:
  MappedFile(const std::string& path, uint64_t size) : size_(size) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
      data_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
      ::close(file);
    }
    SWITCHYARD_CHECK(data_ != MAP_FAILED, DataError, path, ": cannot be read: ", std::strerror(errno));
  }
  ~MappedFile() { ::munmap(data_, size_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  [[nodiscard]] char* at(uint64_t byte) const { return static_cast<char*>(data_) + byte; }

 private:
  void* data_ = MAP_FAILED;
  uint64_t size_;
};

at::Tensor tensor_in(const std::shared_ptr<MappedFile>& mapped, uint64_t data_begin, const StoredTensor& stored) {
  char* const bytes = mapped->at(data_begin + stored.begin);
  if (reinterpret_cast<uintptr_t>(bytes) % c10::elementSize(stored.type) == 0) {
    return at::from_blob(bytes, stored.shape, [mapped](void*) {}, at::TensorOptions(stored.type));
  }
  const at::Tensor copy = at::empty(stored.shape, stored.type);  // other writers may not align
  std::memcpy(copy.mutable_data_ptr(), bytes, copy.nbytes());
  return copy;
}

std::string_view header_text(const MappedFile& mapped, uint64_t file_bytes, const std::string& file) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, mapped.at(0), sizeof header_bytes);
  SWITCHYARD_CHECK(header_bytes <= kLargestHeader && header_bytes <= file_bytes - sizeof header_bytes, DataError, file,
                   ": header of ", header_bytes, " bytes in a file of ", file_bytes,
                   "; not a safetensors file, or cut short");
  return {mapped.at(sizeof header_bytes), header_bytes};
}

}  // namespace

TensorsToSave to_save(const TensorMap& tensors) {
  TensorsToSave result;
  for (const auto& [name, tensor] : tensors) {
    SWITCHYARD_CHECK(tensor.defined(), UsageError, "tensor '", name, "' is undefined");
    result[name] = {tensor.scalar_type(), tensor.sizes().vec(), [given = tensor] { return given; }};
  }
  return result;
}

void save_tensors(const std::filesystem::path& path, const TensorMap& tensors, const TensorMetadata& metadata) {
  save_tensors(path, to_save(tensors), metadata);
}

std::vector<std::string> order_of_making(const TensorsToSave& tensors) {
  std::vector<std::string> names;
  for (const auto& entry : file_order(tensors)) names.push_back(entry->first);
  return names;
}

void save_tensors(const std::filesystem::path& path, const TensorsToSave& tensors, const TensorMetadata& metadata) {
  const std::vector<TensorsToSave::const_iterator> order = file_order(tensors);
  const std::string header = make_header(order, metadata);
  write_file_atomically(path, [&](std::ostream& out) {
    const uint64_t header_bytes = header.size();
    out.write(reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes);
    out.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto& entry : order) {
      const at::Tensor tensor = entry->second.make().detach().to(at::kCPU).contiguous();
      SWITCHYARD_CHECK(tensor.scalar_type() == entry->second.type && tensor.sizes() == entry->second.sizes, UsageError, "tensor '",
                       entry->first, "' was made as ", tensor.scalar_type(), " ", tensor.sizes(), "; ", entry->second.type, " ",
                       c10::IntArrayRef(entry->second.sizes), " was announced");
      out.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    }
  });
}

TensorFile load_tensors(const std::filesystem::path& path) {
  const std::string file = path.string();
  std::error_code missing;
  const uint64_t file_bytes = std::filesystem::file_size(path, missing);
  SWITCHYARD_CHECK(!missing, DataError, file, ": cannot be opened; does it exist?");
  SWITCHYARD_CHECK(file_bytes >= sizeof(uint64_t), DataError, file, ": ", file_bytes, " bytes; not a safetensors file");
  const auto mapped = std::make_shared<MappedFile>(file, file_bytes);
  const std::string_view text = header_text(*mapped, file_bytes, file);
  const uint64_t data_begin = sizeof(uint64_t) + text.size();
  const Json header = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  SWITCHYARD_CHECK(header.is_object(), DataError, file, ": the header is not a JSON object; not a safetensors file");

  TensorFile result;
  std::vector<StoredTensor> stored;
  for (const auto& [name, fields] : header.items()) {
    if (name != kMetadataKey) {
      stored.push_back(parse_tensor(name, fields, file));
      continue;
    }
    try {
      result.metadata = fields.get<TensorMetadata>();
    } catch (const Json::exception& error) {
      throw DataError(join_text(file, ": ", kMetadataKey, " is not a map of strings: ", without_error_name(error.what()),
                                "; the file is damaged: get it again, or use an earlier checkpoint"));
    }
  }
  check_layout(stored, file_bytes - data_begin, file);
  for (const StoredTensor& tensor : stored) result.tensors[tensor.name] = tensor_in(mapped, data_begin, tensor);
  return result;
}

}  // namespace switchyard
